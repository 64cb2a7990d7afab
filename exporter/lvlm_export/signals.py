"""Ctrl-C and requests to end, at any moment: one line, and the status that shells know.

Imports nothing heavy: ``__main__`` takes the signals over before it imports the command line.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

# What the line says; the status is 128 and the signal's number.
WORDS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "ended by SIGTERM",
    signal.SIGHUP: "ended by SIGHUP, the terminal was closed",
}
# Part of the file name of the frames that import a module.
IMPORTS = "importlib._bootstrap"


class StoppedError(KeyboardInterrupt):
    """A signal asked to stop; blocks clean up behind them on its way out."""


class Stops:
    """The signals that stop a command, and those that came.

    While modules load nothing is under way, and libraries that are interrupted there raise anything or
    go on; so the process leaves at once. Elsewhere ``StoppedError`` is raised, so that temporary files and
    locks go. A second signal leaves at once too, as does one that Python could only print.

    Attributes:
        seen: Numbers of the signals that came, in order.
        leaving: The next signal leaves at once: nothing is left to clean up.
    """

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.leaving = False

    def take(self) -> dict[int, object]:
        """Take the signals over, but for those that are ignored (``nohup``) or handled already.

        Returns:
            Number -> what handled it before.
        """
        before = {}
        for number in WORDS:
            handler = signal.getsignal(number)
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                before[int(number)] = signal.signal(number, self._stop)
        sys.unraisablehook = self._unraisable
        return dict(before)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """As ``take`` for a block; outside of the main thread, which gets all signals, nothing."""
        try:
            before = self.take()
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            sys.unraisablehook = sys.__unraisablehook__

    def line(self) -> tuple[str, int]:
        """What to say about the first signal that came, and the exit status."""
        number = signal.Signals(self.seen[0])
        return f"{WORDS[number]}; type the same command to continue", 128 + number

    def leave(self) -> NoReturn:
        """Say so and end the process, now."""
        text, status = self.line()
        try:
            os.write(2, f"{text}\n".encode())
        finally:
            os._exit(status)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.seen.append(number)
        if self.leaving or len(self.seen) > 1 or _imports(frame):
            self.leave()
        raise StoppedError

    def _unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """A signal that came in a destructor or a callback, where Python prints errors and goes on."""
        if issubclass(lost.exc_type, StoppedError):
            self.leave()
        sys.__unraisablehook__(lost)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if IMPORTS in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False
