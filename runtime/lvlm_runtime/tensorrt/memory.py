"""Device memory of a chain: blocks that go round between its graphs, and one scratch for all.

Blocks are handed out first fit, oldest first. A decode step takes and gives back the same sizes in
the same order as the step before, so it gets the same addresses, without a call to the driver, and
that from the second step on: what the first had to allocate is younger than all that it found.
Captured CUDA graphs rest on that, wherever the driver puts its pieces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.tensorrt.cuda import OutOfMemoryError

# Sizes are rounded up to eighths of a power of two: at most an eighth is lost to rounding.
STEPS = 8
SMALLEST = 512
# A free block serves a request of at least half its size.
SLACK = 2


class Memory(Protocol):
    """What an arena takes memory from."""

    def allocate(self, size_bytes: int) -> int:
        """Address of a new piece."""
        ...

    def free(self, address: int) -> None:
        """Give it back."""
        ...


class Transfer(Protocol):
    """What pinned memory is taken from and copies are queued with."""

    def pinned(self, size_bytes: int) -> NDArray[np.uint8]:
        """Pinned host memory."""
        ...

    def copy_in(self, address: int, source: NDArray[np.uint8]) -> None:
        """Queue a copy to the device."""
        ...

    def copy_out(self, target: NDArray[np.uint8], address: int) -> None:
        """Queue a copy to the host."""
        ...

    def synchronize(self) -> None:
        """Wait for what is queued."""
        ...


def rounded(size_bytes: int) -> int:
    """The size that a request is served with."""
    if size_bytes <= SMALLEST:
        return SMALLEST
    step = max(SMALLEST, (1 << (size_bytes - 1).bit_length() - 1) // STEPS)
    return -(-size_bytes // step) * step


@dataclass(frozen=True, order=True)
class Piece:
    """What the driver gave at once; ``number`` counts up from the first."""

    number: int
    size_bytes: int
    address: int


class Block:
    """A piece of device memory in use; it goes back to its arena when nothing holds it any more.

    That may be before the device has used it: whatever takes it next queues its own use behind, on
    the one stream there is.
    """

    def __init__(self, arena: Arena, piece: Piece) -> None:
        self.address = piece.address
        self.size_bytes = piece.size_bytes
        self._piece = piece
        self._arena = arena

    def __del__(self) -> None:
        self._arena.give_back(self._piece)


class Arena:
    """Device memory that is reused.

    Args:
        memory: Where it comes from.

    Attributes:
        allocations: Pieces ever taken from there; it stands still in steady state.
        held_bytes: What was taken from there and not given back.
    """

    def __init__(self, memory: Memory) -> None:
        self.allocations = 0
        self.held_bytes = 0
        self._memory = memory
        self._free: list[Piece] = []

    def take(self, size_bytes: int) -> Block:
        """A block of at least this size.

        Raises:
            OutOfMemoryError: Also after everything that is free was given back.
        """
        wanted = rounded(size_bytes)
        fitting = [each for each in self._free if wanted <= each.size_bytes <= SLACK * wanted]
        if fitting:
            oldest = min(fitting)
            self._free.remove(oldest)
            return Block(self, oldest)
        try:
            address = self._memory.allocate(wanted)
        except OutOfMemoryError:
            self.trim()
            address = self._memory.allocate(wanted)
        self.allocations += 1
        self.held_bytes += wanted
        return Block(self, Piece(self.allocations, wanted, address))

    def give_back(self, piece: Piece) -> None:
        """Make a piece free again; ``Block`` calls it."""
        self._free.append(piece)

    def trim(self) -> None:
        """Return what is free to where it came from."""
        for piece in self._free:
            self._memory.free(piece.address)
            self.held_bytes -= piece.size_bytes
        self._free.clear()


@dataclass(frozen=True)
class DeviceArray:
    """A tensor on the device, row-major and without gaps.

    Attributes:
        address: Where it begins.
        shape: Its shape.
        dtype: numpy's element type.
        block: What it lies in, kept alive by this.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    block: Block

    @property
    def nbytes(self) -> int:
        """Its length."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> DeviceArray:
        """Rows along axis 1 of ``[1, length, …]``, sharing the memory; ValueError outside of it."""
        if self.shape[0] != 1 or not 0 <= start <= stop <= self.shape[1]:
            raise ValueError(f"rows {start} to {stop} are not in a buffer of {list(self.shape)}")
        row = math.prod(self.shape[2:]) * self.dtype.itemsize
        shape = (1, stop - start, *self.shape[2:])
        return DeviceArray(self.address + start * row, shape, self.dtype, self.block)


def new_array(arena: Arena, shape: Sequence[int], dtype: np.dtype[Any]) -> DeviceArray:
    """An array of unknown content."""
    size = math.prod(shape) * dtype.itemsize
    block = arena.take(size)
    return DeviceArray(block.address, tuple(shape), dtype, block)


class Staging:
    """Pinned host memory through which arrays pass to the device and back.

    A piece is not written again before its copy is done: pieces follow one another, and when none
    is left, or when a result was waited for, it starts over.

    Args:
        transfer: Makes pinned memory and copies.
        size_bytes: To begin with; it grows to what a request needs.
    """

    def __init__(self, transfer: Transfer, size_bytes: int = 1 << 22) -> None:
        self._transfer = transfer
        self._buffer = transfer.pinned(size_bytes)
        self._used = 0

    def send(self, array: NDArray[Any], target: DeviceArray) -> None:
        """Queue a copy to the device; the array may change as soon as this returns."""
        piece = self._piece(array.nbytes)
        piece[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if array.nbytes:
            self._transfer.copy_in(target.address, piece)

    def receive(self, source: DeviceArray) -> NDArray[Any]:
        """Wait for an array and everything before it."""
        piece = self._piece(source.nbytes)
        if source.nbytes:
            self._transfer.copy_out(piece, source.address)
        self._transfer.synchronize()
        self._used = 0
        array: NDArray[Any] = piece.copy().view(source.dtype).reshape(source.shape)
        return array

    def _piece(self, size_bytes: int) -> NDArray[np.uint8]:
        if self._used + size_bytes > len(self._buffer):
            self._transfer.synchronize()
            self._used = 0
            if size_bytes > len(self._buffer):
                self._buffer = self._transfer.pinned(rounded(size_bytes))
        start = self._used
        # Pieces begin on 64 bytes, so that any element type lies well in them.
        self._used += -(-size_bytes // 64) * 64
        return self._buffer[start : start + size_bytes]


class Scratch:
    """The memory that graphs work in: they run one after another, so one piece serves all.

    Args:
        memory: Where it comes from.

    Attributes:
        address: Where it lies; 0 while nothing needs any.
        size_bytes: Its size.
    """

    def __init__(self, memory: Memory) -> None:
        self.address = 0
        self.size_bytes = 0
        self._memory = memory

    def reserve(self, size_bytes: int) -> None:
        """Make it at least this large; it may move, and whoever uses it has to look again."""
        if size_bytes <= self.size_bytes:
            return
        if self.address:
            self._memory.free(self.address)
            self.address = self.size_bytes = 0
        self.address = self._memory.allocate(rounded(size_bytes))
        self.size_bytes = rounded(size_bytes)
