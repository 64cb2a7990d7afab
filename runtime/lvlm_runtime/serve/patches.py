"""Which patches of a picture stay, as the answer that they gave says it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lvlm_runtime.backends import Backend
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.chain.recorder import Reduced
from lvlm_runtime.image.picture import Picture
from lvlm_runtime.image.preprocess import preprocess
from lvlm_runtime.image.seen import seen_picture


def patch_grid(bundle: Bundle) -> tuple[int, int] | None:
    """Rows and columns of a picture's tokens before any reduction; None where they are no one grid.

    Args:
        bundle: Where it has several layouts, tiles, or a trained projector, they are none.
    """
    manifest = bundle.manifest
    # With several, a picture's own decides, and tiles of one are packed.
    if len(manifest.layouts) != 1 or manifest.projector is not None:
        return None
    layout = manifest.layouts[0]
    packed = any(budget.layout(layout.name).packer is not None for budget in manifest.budgets)
    if layout.tiles != 1 or packed:
        return None
    if manifest.grid is not None:
        return manifest.grid
    side = math.isqrt(manifest.vision_tokens)
    return (side, side) if side * side == manifest.vision_tokens else None


@dataclass
class KeptPatches:
    """What reducers keep of a request's one picture.

    Attributes:
        grid: Rows and columns of its tokens.
        backend: Fetches what reducers give.
        sites: Site and the places that are left behind it; -1 for a token of no single patch.
    """

    grid: tuple[int, int]
    backend: Backend
    sites: list[tuple[str, list[int]]] = field(default_factory=list)

    def watch(self, site: str, reduced: Reduced) -> None:
        """One call of a reducer, as ``Recorder.on_reduction`` tells it."""
        rows, columns = self.grid
        before = np.array(self.sites[-1][1] if self.sites else range(rows * columns), np.int64)
        places = np.zeros(0, np.int64)
        if "places" in reduced.outputs:
            places = self.backend.fetch(reduced.outputs["places"])[0].astype(np.int64)
        left = np.where(places >= 0, before[np.maximum(places, 0)], -1) if len(places) else places
        self.sites.append((site, left.tolist()))

    def told(self, bundle: Bundle, picture: Picture) -> dict[str, Any]:
        """As an answer says it: the grid, the sites, and what the model saw of the picture."""
        rows, columns = self.grid
        sites = [{"site": site, "kept": kept} for site, kept in self.sites]
        seen = _seen(bundle, [picture])
        return {"rows": rows, "columns": columns, "sites": sites, "picture": seen}


def _seen(bundle: Bundle, pictures: Sequence[Picture]) -> str:
    spec = bundle.manifest.preprocess
    pixels = preprocess(pictures, spec, bundle.manifest.layouts[0]).pixel_values[0]
    file = io.BytesIO()
    seen_picture(pixels, spec).save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
