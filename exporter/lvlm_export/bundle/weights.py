"""The bundle's one weight file: every tensor once, by content.

Tensors are appended to ``weights.bin`` as they are met and found again by the SHA-256 of their
bytes, so graphs that share a tensor (all of them share, across budgets and with the host's token
table) point at one place. Only one tensor is in memory at a time.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from lvlm_export.graphs.element_types import INT4, numpy_name
from lvlm_export.graphs.quantise import pack_int4, quantise
from lvlm_export.graphs.weight_use import WeightUse
from lvlm_export.plan.weight_formats import FORMATS
from lvlm_profiles.files import whole_file
from lvlm_runtime.bundle.bundle import WEIGHTS
from lvlm_runtime.bundle.manifest import TensorRef

# Memory maps start at page bounds: a large tensor gets a page of its own, a small one a cache line.
PAGE, LINE = 4096, 64
LARGE_BYTES = 1 << 20


class TensorSource(Protocol):
    """Where values come from; ``Checkpoint`` is one."""

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor of that parameter name."""
        ...


class WeightStore:
    """Append-only writer of ``weights.bin``.

    Args:
        directory: The bundle under construction.
        source: Gives tensors by name.
        refs: What an interrupted build had already stored; the file is cut back to that.
    """

    def __init__(
        self, directory: Path, source: TensorSource, refs: dict[str, TensorRef] | None = None
    ) -> None:
        self.path = directory / WEIGHTS
        self.source = source
        self.refs = dict(refs or {})
        self._by_use: dict[WeightUse, TensorRef] = {}
        self.path.touch()
        end = max((ref.offset + ref.size_bytes for ref in self.refs.values()), default=0)
        if self.path.stat().st_size != end:
            self._own()
            with self.path.open("r+b") as stream:
                stream.truncate(end)

    def place(self, use: WeightUse) -> TensorRef:
        """Store a tensor of the source, unless it is there, and say where it lies."""
        if use.rows is not None:
            assert not use.transposed, "rows of a transposed tensor are no one piece"
            return _rows(self.place(replace(use, rows=None)), *use.rows)
        if use.format is not None and use not in self._by_use:
            self._quantise(use)
        if use not in self._by_use:
            tensor = self.source.tensor(use.name).to(use.dtype)
            tensor = tensor.t() if use.transposed else tensor
            self._by_use[use] = self.put(tensor)
        return self._by_use[use]

    def _quantise(self, use: WeightUse) -> None:
        """Store integers and scales of a tensor; who asks for one of the two wants the other, too."""
        assert use.format is not None
        found = quantise(self.source.tensor(use.name), use.format, use.dtype)
        values, scales = (each.t() if use.transposed else each for each in found)
        packed = FORMATS[use.format].bits == 4
        placed = self.put(pack_int4(values)) if packed else self.put(values)
        if packed:
            placed = replace(placed, dtype=INT4, shape=tuple(values.shape))
        self._by_use[replace(use, scales=False)] = placed
        self._by_use[replace(use, scales=True)] = self.put(scales)

    def put(self, tensor: torch.Tensor) -> TensorRef:
        """Store a tensor's bytes, unless they are there, and say where they lie."""
        whole = tensor.detach().contiguous()
        # numpy has no bfloat16; the bytes are what counts.
        array = (whole.view(torch.int16) if whole.dtype == torch.bfloat16 else whole).numpy()
        digest = hashlib.sha256(array.data if array.ndim else array.tobytes()).hexdigest()
        known = self.refs.get(digest)
        if known is None:
            alignment = PAGE if array.nbytes >= LARGE_BYTES else LINE
            start = -(-self.path.stat().st_size // alignment) * alignment
            self._own()
            with self.path.open("r+b") as stream:
                stream.seek(start)
                stream.write(array.data if array.ndim else array.tobytes())
            known = TensorRef(
                numpy_name(tensor.dtype), tuple(tensor.shape), start, array.nbytes, digest
            )
            self.refs[digest] = known
        # Equal bytes may be wanted in another shape ([1, N] and [N]); the place is the same.
        return TensorRef(
            numpy_name(tensor.dtype), tuple(tensor.shape), known.offset, known.size_bytes, digest
        )

    def _own(self) -> None:
        """Before a write: a file that another bundle has too, by a hard link, is copied first."""
        if self.path.stat().st_nlink > 1:
            with whole_file(self.path) as stream, self.path.open("rb") as shared:
                shutil.copyfileobj(shared, stream, 1 << 24)


def _rows(whole: TensorRef, first: int, last: int) -> TensorRef:
    """Where rows ``[first, last)`` of a stored tensor lie; the digest stays that of the whole."""
    row = whole.size_bytes // whole.shape[0]
    return replace(
        whole,
        shape=(last - first, *whole.shape[1:]),
        offset=whole.offset + first * row,
        size_bytes=(last - first) * row,
    )
