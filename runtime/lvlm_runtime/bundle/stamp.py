"""The stamp: which large files were found intact, so that they are not hashed at every opening.

It is a cache that may be lost or wrong without harm to what is there: an entry counts only while the
file has the number, size and both times that it had. The second time, of the last change
to the file or its attributes, cannot be set by a program, so a file that was changed and dated back
is hashed again. A copy of the bundle has other numbers and is hashed once.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from lvlm_profiles.files import write_whole
from lvlm_profiles.readers import UnreadableError, load_json
from lvlm_runtime.bundle.files import STAMP, CheckedFile, is_intact
from lvlm_runtime.bundle.manifest import FileRef

# Times of files move in steps, of 2 s on some file systems: what is younger may change within one.
YOUNG_NS = 3_000_000_000


class Stamp:
    """The stamp of a directory.

    Args:
        directory: Where it lies.
        believed: False to hash everything, whatever it says; what is found intact is noted.
    """

    def __init__(self, directory: Path, believed: bool = True) -> None:
        self._path = directory / STAMP
        self._noted = _read(self._path)
        self._believed = believed

    def vouches(self, name: str, held: CheckedFile, ref: FileRef) -> bool:
        """Is a file what it must be? Hashes it unless it is known to be."""
        before = held.state()
        entry = [*before, ref.sha256]
        if self._believed and self._noted.get(name) == entry:
            return True
        if not is_intact(held, ref):
            return False
        # A file that was written to meanwhile, or that still may be within one step of its times.
        settled = max(before[-2:]) + YOUNG_NS < time.time_ns()
        if settled and held.state() == before and self._noted.get(name) != entry:
            self._noted[name] = entry
            self._write()
        return True

    def _write(self) -> None:
        # A read-only medium keeps no stamp and hashes at every opening: slower, never wrong.
        with contextlib.suppress(OSError):
            write_whole(self._path, json.dumps(self._noted))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = load_json(path)
    except (OSError, UnreadableError):
        return {}
    return content if isinstance(content, dict) else {}
