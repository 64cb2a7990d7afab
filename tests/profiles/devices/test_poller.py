"""A source that is read in a thread: until it is stopped, and what happens when it fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from lvlm_profiles.devices.memory_probe import PolledProbe
from lvlm_profiles.devices.poller import Poller
from lvlm_profiles.energy import PowerMeter

SOON_S = 10.0


def test_a_source_is_read_again_and_again_until_the_end() -> None:
    often, readings = threading.Event(), []

    def poll() -> None:
        readings.append(1)
        if len(readings) == 3:
            often.set()

    poller = Poller(poll, 0.0)
    poller.start()
    assert often.wait(SOON_S)
    poller.stop()
    count = len(readings)
    time.sleep(0.02)
    assert len(readings) == count >= 3, "nothing is read after the end"


class FailingSensor:
    """Answers once, fails once, and then answers again."""

    def __init__(self) -> None:
        self.failed = threading.Event()
        self.answers = 1

    def __call__(self) -> int:
        self.answers -= 1
        if self.answers == -1:
            self.failed.set()
            raise OSError("the sensor is gone")
        return 5


@pytest.mark.parametrize(
    "open_source",
    [
        lambda sensor: PowerMeter("a meter", "everything", sensor),
        lambda sensor: PolledProbe("device", sensor),
    ],
    ids=["energy", "memory"],
)
def test_a_source_that_fails_in_between_is_no_measurement(
    open_source: Callable[[FailingSensor], PowerMeter | PolledProbe],
) -> None:
    """Neither energy nor a peak is made of the readings before the failure and after it."""
    sensor = FailingSensor()

    def measure() -> None:
        with open_source(sensor):
            assert sensor.failed.wait(SOON_S)

    with pytest.raises(OSError, match="the sensor is gone"):
        measure()
