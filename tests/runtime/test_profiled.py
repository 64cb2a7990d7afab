"""The last profile of a bundle, and the ratio that meets a latency."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lvlm_profiles.devices.machine import fingerprint
from lvlm_runtime import Session
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.profiled import (
    Setup,
    choose_ratio,
    keep_report,
    last_report,
    milliseconds,
    reports_directory,
)
from reports import MACHINE, MODEL, make_report

BUNDLE = Path("bundle")
CPU = Setup("onnxruntime", "cpu", None)


LAYOUT = make_report().request.layout


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("target", "ratio"), [(203.0, 1.0), (202.9, 0.33), (101.6, 0.33), (5000.0, 1.0)]
)
def test_the_largest_ratio_that_nine_of_ten_requests_met(target: float, ratio: float) -> None:
    # 90th percentiles of the samples: 203 ms at 1.0 and 101.5 ms at 0.33.
    choice = choose_ratio(make_report(), target, images=1, layout=LAYOUT)
    assert choice.ratio == ratio
    assert choice.expected_ms == pytest.approx({1.0: 203.0, 0.33: 101.5}[ratio])
    assert choice.prompt_tokens == 218


def test_a_latency_that_no_ratio_meets_names_the_fastest() -> None:
    with pytest.raises(
        LvlmError, match=r"no ratio of this bundle meets 50 ms: the fastest is 0.33 with 10\d ms"
    ):
        choose_ratio(make_report(), 50.0, images=1, layout=LAYOUT)


def test_a_profile_of_another_number_of_pictures_says_nothing() -> None:
    with pytest.raises(
        LvlmError, match=r"requests of 1 picture\(s\) and this one has 2; profile with"
    ):
        choose_ratio(make_report(), 300.0, images=2, layout=LAYOUT)


def test_a_profile_of_another_layout_says_nothing() -> None:
    with pytest.raises(
        LvlmError, match=r"of the layout .* and this one takes single-640x480; prof"
    ):
        choose_ratio(make_report(), 300.0, images=1, layout="single-640x480")


def test_the_last_profile_of_this_machine_is_found() -> None:
    here = replace(MACHINE, fingerprint=fingerprint())
    old = make_report(machine=here)
    new = replace(old, created="2026-02-02T00:00:00+00:00")
    keep_report(old)
    path = keep_report(new)
    assert path.parent == reports_directory()
    found = last_report(MODEL.content_key, CPU, BUNDLE)
    assert found.created == new.created


@pytest.mark.parametrize(
    ("key", "setup", "message"),
    [
        ("0" * 64, CPU, "with onnxruntime on cpu; type `lvlm-export profile bundle` first"),
        (MODEL.content_key, Setup("tensorrt", "cuda", None), "with tensorrt on cuda; type"),
        (
            MODEL.content_key,
            Setup("onnxruntime", "cpu", 1),
            "with onnxruntime on cpu, --threads 1; type `lvlm-export profile bundle --threads 1`",
        ),
    ],
)
def test_of_another_bundle_backend_or_number_of_threads_nothing_is_known(
    key: str, setup: Setup, message: str
) -> None:
    keep_report(make_report(machine=replace(MACHINE, fingerprint=fingerprint())))
    with pytest.raises(LvlmError, match=f"never profiled on this machine {message}"):
        last_report(key, setup, BUNDLE)


def test_a_profile_of_another_machine_is_not_taken() -> None:
    keep_report(make_report())
    with pytest.raises(LvlmError, match="never profiled on this machine"):
        last_report(MODEL.content_key, CPU, BUNDLE)


def test_a_damaged_profile_says_to_profile_again() -> None:
    path = keep_report(make_report(machine=replace(MACHINE, fingerprint=fingerprint())))
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(
        LvlmError, match=r"is no report .*; type `lvlm-export profile bundle` again"
    ):
        last_report(MODEL.content_key, CPU, BUNDLE)


def test_without_xdg_the_home_directory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert reports_directory() == Path("/home/someone/.local/state/lvlm-export/profiles")


@pytest.mark.parametrize(("text", "found"), [("300ms", 300.0), (" .3 s", 300.0), ("300", 300.0)])
def test_a_time_has_a_unit_or_is_in_milliseconds(text: str, found: float) -> None:
    assert milliseconds(text) == found


@pytest.mark.parametrize("text", ["", "0ms", "-1s", "3 h", "0.3", ".3", 0.3, None, "1e3ms"])
def test_what_is_no_time_is_refused(text: object) -> None:
    with pytest.raises(UsageError, match=r"is not a time; write 300ms or 0.3s"):
        milliseconds(text)


def test_a_session_takes_its_ratio_by_the_last_profile(demo_bundle: Path) -> None:
    """90th percentiles are 203 ms at 1.0 and 101.5 ms at 0.33, as above."""
    with Session.open(demo_bundle, backend="onnxruntime", device="cpu") as session:
        model = replace(MODEL, content_key=session.bundle.manifest.content_key)
        here = replace(MACHINE, fingerprint=fingerprint(), backend="onnxruntime", execution="cpu")
        keep_report(replace(make_report(machine=replace(here, threads=None)), model=model))
        picture = np.zeros((40, 60, 3), np.uint8)
        ratios = [
            session.generate("a", picture, ttft=ttft, max_new_tokens=1).ratio
            for ttft in ("0.5s", "150ms")
        ]
        assert ratios == [1.0, 0.33]
        with pytest.raises(LvlmError, match="no ratio of this bundle meets 50 ms"):
            session.generate("a", picture, ttft="50ms")
