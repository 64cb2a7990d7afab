"""What several test files need: a build without a screen, and one tiny bundle each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lvlm_export.bundle.build import BuildResult, build
from lvlm_export.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions


class Silent:
    """Build progress without output; it keeps the steps for tests."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str]] = []

    @contextmanager
    def stage(self, title: str, steps: int) -> Iterator[Callable[[str], None]]:
        yield lambda step: self.steps.append((title, step))


def build_tiny(checkpoint: Path, output: Path, *ratios: float, **options: Any) -> BuildResult:
    """Build without the parity gate; tests compare for themselves."""
    settings = BuildOptions(ratios, **options)
    return build(
        Checkpoint.open(checkpoint), checkpoint.name, settings, output, Silent(), verify_samples=0
    )
