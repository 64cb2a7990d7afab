"""The last profile of every bundle on this machine, and the ratio that meets a latency.

Reports lie in ``$XDG_STATE_HOME/lvlm-export/profiles`` (``~/.local/state`` unless set), named after
the bundle's content key, the machine and what runs the graphs. Beside the bundle they would travel
with it to a machine that they say nothing of.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lvlm_profiles.devices import machine
from lvlm_profiles.report import Report, load_report, write_report
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.image.picture import Picture
from lvlm_runtime.request import layout_for


@dataclass(frozen=True)
class Choice:
    """The ratio that a profile advises.

    Attributes:
        ratio: The largest that meets the target.
        expected_ms: Its 90th percentile of the time to first token.
        prompt_tokens: Of the prompt that was profiled, before reduction in the decoder.
    """

    ratio: float
    expected_ms: float
    prompt_tokens: int


def milliseconds(text: object) -> float:
    """A time, ``300ms``, ``0.3s`` or ``300``, in milliseconds.

    Raises:
        UsageError: Something else; 0.3 by itself too, which is meant in seconds and would be read as 0.3 ms.

    Example:
        >>> milliseconds("0.3s")
        300.0
    """
    match = (
        re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s)|\d+", text.strip())
        if isinstance(text, str)
        else None
    )
    found = (
        0.0 if match is None else float(match[1] or match[0]) * (1e3 if match[2] == "s" else 1.0)
    )
    if not 0 < found < 1e9:
        raise UsageError(f"{text!r} is not a time; write 300ms or 0.3s")
    return found


def reports_directory() -> Path:
    """Where reports lie."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "lvlm-export" / "profiles"


@dataclass(frozen=True)
class Setup:
    """What runs the graphs, as far as times depend on it.

    Attributes:
        backend: Key in ``BACKENDS``.
        execution: ``cpu`` or ``cuda``.
        threads: CPU threads; None for one per physical core.
    """

    backend: str
    execution: str
    threads: int | None

    def __str__(self) -> str:
        """For people."""
        threads = "" if self.threads is None else f", --threads {self.threads}"
        return f"{self.backend} on {self.execution}{threads}"


def report_path(content_key: str, fingerprint: str, setup: Setup) -> Path:
    """The file of a bundle's last profile."""
    threads = "" if setup.threads is None else f"-{setup.threads}"
    name = f"{content_key[:16]}-{fingerprint}-{setup.backend}-{setup.execution}{threads}.json"
    return reports_directory() / name


def keep_report(report: Report) -> Path:
    """Keep a report as its bundle's last."""
    measured_on = report.machine
    setup = Setup(measured_on.backend, measured_on.execution, measured_on.threads)
    path = report_path(report.model.content_key, measured_on.fingerprint, setup)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_report(report, path)
    return path


def last_report(content_key: str, setup: Setup, bundle: Path) -> Report:
    """The last profile of a bundle on this machine.

    Raises:
        LvlmError: There is none, or it cannot be read; says to profile.
    """
    path = report_path(content_key, machine.fingerprint(), setup)
    threads = "" if setup.threads is None else f" --threads {setup.threads}"
    command = f"lvlm-export profile {bundle}{threads}"
    if not path.exists():
        raise LvlmError(
            f"this bundle was never profiled on this machine with {setup}; type `{command}` first,"
            " or give --ratio"
        )
    return load_report(path, f"type `{command}` again")


def profiled_choice(
    bundle: Bundle, setup: Setup, target_ms: float, images: Sequence[Picture]
) -> Choice:
    """The ratio that a bundle's last profile on this machine advises for a request with these images.

    Raises:
        LvlmError: There is no profile of such requests, no ratio meets the time, or an image cannot be
            read.
    """
    layout = layout_for(bundle.manifest, images)
    report = last_report(bundle.manifest.content_key, setup, bundle.directory)
    return choose_ratio(report, target_ms, len(images), None if layout is None else layout.name)


def choose_ratio(report: Report, target_ms: float, images: int, layout: str | None) -> Choice:
    """The largest ratio that nine of ten profiled requests answered in time.

    Args:
        report: The profile.
        target_ms: Time to first token that is asked for.
        images: Pictures of the request; the profile must have had as many.
        layout: Their tile layout; the profile must have had the same. None without pictures.

    Raises:
        LvlmError: No ratio meets it, or the profile is of another number of pictures or another layout.
    """
    profiled = len(report.request.images)
    if images != profiled:
        raise LvlmError(
            f"the last profile measured requests of {profiled} picture(s) and this one has"
            f" {images}; profile with as many --image, or give --ratio"
        )
    if layout != report.request.layout:
        raise LvlmError(
            f"the last profile measured pictures of the layout {report.request.layout} and this one"
            f" takes {layout}; profile with a picture of its shape (--image), or give --ratio"
        )
    fast = [each for each in report.budgets if each.ttft_ms.summary.p90 <= target_ms]
    if not fast:
        best = min(report.budgets, key=lambda each: each.ttft_ms.summary.p90)
        raise LvlmError(
            f"no ratio of this bundle meets {target_ms:g} ms: the fastest is {best.ratio:g} with"
            f" {best.ttft_ms.summary.p90:.0f} ms (90th percentile); build with a smaller --ratio"
        )
    chosen = max(fast, key=lambda each: each.ratio)
    return Choice(chosen.ratio, chosen.ttft_ms.summary.p90, chosen.prompt_tokens)
