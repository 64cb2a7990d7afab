"""Entry point of the ``lvlm-export`` script and of ``python -m lvlm_export``.

Signals and closed streams are seen to before anything else is imported, which takes time.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from lvlm_export.signals import Stops


def main() -> None:
    """Run the command line that was typed."""
    stops = Stops()
    try:
        stops.take()
        open_closed_streams()
        sys.stdout = NamedStdout(sys.stdout)  # type: ignore[assignment]
        from lvlm_export.cli import cli

        cli.main(prog_name="lvlm-export", stops=stops)
    except KeyboardInterrupt:
        stops.leave()


def open_closed_streams() -> None:
    """Let what was closed (``>&-``) lead nowhere.

    Otherwise the next file that is opened takes its number, and what a library prints lands in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # The lowest number that is free: those below are open by now.
            descriptor = os.open(os.devnull, os.O_RDWR)
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(descriptor, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


class NamedStdout:
    """stdout, whose errors say so: a full disk behind ``> file`` is not that of a build."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of the stream."""
        try:
            return int(self._stream.write(text))
        except OSError as error:
            raise OSError(error.errno, error.strerror, "stdout") from None

    def flush(self) -> None:
        """As of the stream."""
        try:
            self._stream.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, "stdout") from None


if __name__ == "__main__":
    main()
