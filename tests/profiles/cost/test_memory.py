"""Memory before the run: what fits, and what is proposed where it does not."""

from __future__ import annotations

import re

import pytest

from lvlm_profiles.cost.memory import Need, check_fits, describe, free_bytes
from lvlm_profiles.devices.device import load_device
from lvlm_profiles.errors import LvlmError

NANO = load_device("orin_nano_8gb")


def needing(weights: int, per_token: int):  # type: ignore[no-untyped-def]
    return lambda text, answer: Need(weights, 0, per_token * (text + answer), 0)


def test_what_fits_passes() -> None:
    need = check_fits(NANO, needing(4 * 10**9, 10**6), 512, 512)
    assert need.total == 4 * 10**9 + 1024 * 10**6
    assert describe(need).startswith("5.02 GB (weights 4.00, kernels 0.00, kv cache 1.02,")


def test_the_proposal_fits_and_is_nearly_the_largest() -> None:
    ask = needing(5 * 10**9, 10**6)
    with pytest.raises(LvlmError, match=r"Orin Nano 8 GB has 6\.00 GB") as refused:
        check_fits(NANO, ask, 2000, 1000)
    found = re.search(r"--text-tokens (\d+) --answer-tokens (\d+) fits", str(refused.value))
    assert found is not None
    text, answer = int(found[1]), int(found[2])
    free = free_bytes(NANO)
    assert free is not None
    assert free - 3 * 10**6 < ask(text, answer).total <= free
    assert text == pytest.approx(2 * answer, abs=2)


def test_a_model_that_never_fits_says_so() -> None:
    with pytest.raises(LvlmError, match="use a smaller model"):
        check_fits(NANO, needing(7 * 10**9, 1), 10, 10)


def test_unknown_memory_is_not_judged() -> None:
    assert free_bytes(load_device("x86_cpu")) is None
    assert check_fits(load_device("x86_cpu"), needing(10**12, 1), 1, 1).weights == 10**12
