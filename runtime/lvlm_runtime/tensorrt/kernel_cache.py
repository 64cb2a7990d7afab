"""Kernels that TensorRT-RTX compiled for the GPU at hand, kept beside the engines.

TensorRT-RTX compiles an engine's kernels where it runs, when they are first needed. All contexts of
a bundle share one cache; it is read when the first is made and written when the process ends, so
that the next one starts fast. A cache of another GPU, driver or library is refused by TensorRT-RTX
itself, and then the kernels are compiled as without one.
Source: NVIDIA TensorRT-RTX documentation, "Working with Runtime Cache".
"""

from __future__ import annotations

import contextlib
import weakref
from pathlib import Path
from typing import Any

from lvlm_profiles.files import write_whole

FILE = "kernels.cache"


class KernelCache:
    """The cache of one bundle's engines.

    Args:
        path: Its file; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache: Any = None

    def attach(self, config: Any) -> None:
        """Give it to a context's configuration (``IRuntimeConfig``)."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            before = self._path.read_bytes() if self._path.exists() else b""
            if before:
                self._cache.deserialize(before)
            # Runs when this object goes, or at the latest when the interpreter ends.
            weakref.finalize(self, _save, self._cache, self._path, before)
        config.set_runtime_cache(self._cache)


def _save(cache: Any, path: Path, before: bytes) -> None:
    """Keep what was compiled. A bundle that cannot be written keeps compiling anew, as before."""
    content = bytes(cache.serialize())
    if content in (before, b""):
        return
    with contextlib.suppress(OSError):
        write_whole(path, content)
