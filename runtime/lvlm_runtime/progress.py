"""Progress of long work, step by step; the command line draws bars from it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """Receives the stages and steps of long work; the command line draws bars from them."""

    def stage(self, title: str, steps: int) -> AbstractContextManager[Advance]:
        """A stage of ``steps`` steps; inside, call the value once per step with its name."""
        ...


class Advance(Protocol):
    """Called once per step."""

    def __call__(self, step: str) -> None: ...


class NoProgress:
    """Shows nothing: for work that is timed, or whose caller shows its own progress."""

    def stage(self, title: str, steps: int) -> AbstractContextManager[Advance]:
        """A stage that is not shown."""
        return nullcontext(lambda step: None)
