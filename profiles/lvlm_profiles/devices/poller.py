"""A thread that reads a source again and again while something else runs."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Poller:
    """Calls a function in a thread of its own, from ``start`` to ``stop``.

    Args:
        poll: What is called; it keeps what it reads.
        interval_s: Seconds between two calls; 0 for a function that waits for its source itself.
    """

    def __init__(self, poll: Callable[[], None], interval_s: float) -> None:
        self._poll, self._interval_s = poll, interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: Exception | None = None

    def start(self) -> None:
        """Begin; the first call comes after one interval."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for the call that is under way, and end.

        Raises:
            Exception: What the function raised: from there on nothing was read.
        """
        self._done.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._done.wait(self._interval_s):
                self._poll()
        except Exception as error:  # raised again by ``stop``, in the caller's own thread
            self._error = error
