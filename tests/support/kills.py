"""A piece of code in a child process that is killed, or held up, before its n-th operation on files.

An operation is what Python's audit events report (an opening for writing, a rename, a removal, a new
directory, a lock, the look-up of ``renameat2``), or a sync. A child's audit hook ends with the child.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lvlm_runtime.errors import LvlmError

KILLED, REFUSED, FAILED = 137, 3, 4
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Process:
    """A build in a child process.

    Args:
        run: The build.
        messages: File for what it says if it fails.
        at: The operation before which it stops, 0 for none, or what says that it is the next.
        held: Wait there until ``go_on`` instead of dying.
    """

    def __init__(
        self,
        run: Callable[[], None],
        messages: Path,
        at: int | Callable[[], bool] = 0,
        held: bool = False,
    ) -> None:
        self.at, self.count = at, 0
        here, self.go = os.pipe() if held else (0, 0)
        self.arrived, there = os.pipe() if held else (0, 0)
        self.pid = os.fork()
        if self.pid:
            for number in (here, there):
                if number:
                    os.close(number)
            return
        if held:
            os.close(self.go)
            os.close(self.arrived)

        def stop() -> None:
            if not held:
                os._exit(KILLED)
            os.write(there, b"x")
            os.read(here, 1)

        try:
            self._watch(stop)
            run()
            status = 0
        except LvlmError as error:
            messages.write_text(str(error))
            status = REFUSED
        except BaseException:
            messages.write_text(traceback.format_exc())
            status = FAILED
        os._exit(status)

    def _watch(self, stop: Callable[[], None]) -> None:
        def operation() -> None:
            self.count += 1
            if self.at() if callable(self.at) else self.count == self.at:
                stop()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
            locks = event == "fcntl.flock"
            swaps = event == "ctypes.dlsym" and arguments[1] == "renameat2"
            if event in CHANGES or writes or locks or swaps:
                operation()

        os.fsync = lambda _number: operation()  # nothing is lost here but by a kill
        sys.addaudithook(hook)

    def wait(self) -> int:
        """The exit status."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def reach(self) -> bool:
        """Wait until it is held up; False where it ended before."""
        return os.read(self.arrived, 1) == b"x"

    def go_on(self) -> int:
        """Let it end; the exit status."""
        os.write(self.go, b"x")
        os.close(self.go)
        os.close(self.arrived)
        return self.wait()
