"""What is remembered of pictures, in a byte budget."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lvlm_runtime.chain.held import Element
from lvlm_runtime.chain.snapshot import Snapshot
from lvlm_runtime.chain.vision import Visual
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.image.picture import Picture, load_image, opened

# Ten pictures of LLaVA-OneVision-0.5B at ratio 1.0, caches and all.
DEFAULT_BYTES = 1 << 28


def whole(source: Picture) -> Picture:
    """A picture that no later change of its file reaches: a path as the bytes that are there now.

    Raises:
        LvlmError: It cannot be read.
    """
    source = opened(source)
    if not isinstance(source, Path):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        if source.is_file():
            raise LvlmError(f"{source} cannot be read ({error}); check its rights") from None
        load_image(source)  # says what is wrong with the path
        raise


def digest(source: Picture) -> str:
    """SHA-256 of a picture: of its file, or of its pixels where it has none."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, (np.ndarray, Image.Image)):
        pixels = load_image(source)
        return hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).hexdigest()
    return digest(whole(source))


class PictureMemory:
    """What is remembered of pictures, on the host and in a byte budget.

    Visual tokens, and the caches of prompts up to their last picture. What was not used for longest
    goes first.

    Args:
        budget_bytes: Most that is kept; what is larger than that alone is not kept.

    Attributes:
        held_bytes: What is kept now.

    Raises:
        UsageError: A budget below 0.
    """

    def __init__(self, budget_bytes: int = DEFAULT_BYTES) -> None:
        if budget_bytes < 0:
            raise UsageError(f"a memory of {budget_bytes} bytes is below 0; give 0 (none) or more")
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        self._kept: OrderedDict[Hashable, Visual | Snapshot] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        """Whether a picture's visual tokens are here."""
        return key in self._kept

    def __len__(self) -> int:
        """Entries, of both kinds."""
        return len(self._kept)

    def visual(self, key: Hashable, compute: Callable[[], Visual]) -> Visual:
        """Visual tokens and their planes, as numpy arrays; computed where they are not here.

        Args:
            key: What makes them the same.
            compute: Gives them, on the host.
        """
        kept = self._kept.get(key)
        if isinstance(kept, Visual):
            self._kept.move_to_end(key)
            return kept
        visual = compute()
        self._keep(key, visual)
        return visual

    def nearest(self, elements: Sequence[Element]) -> Snapshot | None:
        """The snapshot that has most rows in common with a prompt, a picture among them."""
        best, most = None, 0
        for kept in self._kept.values():
            if isinstance(kept, Snapshot) and kept.rows_in(elements) > most:
                best, most = kept, kept.rows_in(elements)
        if best is not None:
            self._kept.move_to_end(best.elements)
        return best

    def keep(self, snapshot: Snapshot) -> None:
        """Keep the caches of the beginning of a prompt."""
        self._keep(snapshot.elements, snapshot)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.held_bytes = 0

    def _keep(self, key: Hashable, value: Visual | Snapshot) -> None:
        size = _bytes(value)
        if size > self.budget_bytes:
            return
        if key in self._kept:
            self.held_bytes -= _bytes(self._kept.pop(key))
        self._kept[key] = value
        self.held_bytes += size
        while self.held_bytes > self.budget_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.held_bytes -= _bytes(dropped)


def _bytes(value: Visual | Snapshot) -> int:
    if isinstance(value, Snapshot):
        return value.size_bytes
    assert isinstance(value.tokens, np.ndarray)
    sizes = 0 if value.sizes is None else value.sizes.nbytes
    planes = 0
    for plane in value.planes.values():
        assert isinstance(plane.rows, np.ndarray)
        planes += plane.rows.nbytes + plane.origins.offsets.nbytes
    return value.tokens.nbytes + value.origins.offsets.nbytes + sizes + planes
