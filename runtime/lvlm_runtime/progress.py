"""How long work says what it is doing; the command line draws bars from it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """Told what the build is doing; the command line draws bars."""

    def stage(self, title: str, steps: int) -> AbstractContextManager[Advance]:
        """A stage of ``steps`` steps; inside, call the value once per step with its name."""
        ...


class Advance(Protocol):
    """Called once per step."""

    def __call__(self, step: str) -> None: ...


class NoProgress:
    """Draws nothing: for work that others watch, or that is being timed."""

    def stage(self, title: str, steps: int) -> AbstractContextManager[Advance]:
        """A stage that nobody looks at."""
        return nullcontext(lambda step: None)
