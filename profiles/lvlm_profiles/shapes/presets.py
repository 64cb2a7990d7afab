"""Shapes of published models, as data with their source: what a plan needs and no weights.

One JSON file per model in ``shapes/`` and no line anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lvlm_profiles import records
from lvlm_profiles.shapes.dims import ModelDims

DIRECTORY = Path(__file__).parent
REMEDY = "mend the shapes, or install lvlm-export again"


@dataclass(frozen=True)
class Tiles:
    """How a picture is cut into tiles.

    Attributes:
        layout: ``single`` (anyres of LLaVA-NeXT and LLaVA-OneVision), ``tiles`` (InternVL's, which
            follow one another) or ``image`` (Qwen-VL's: one view of the picture's own shape, whose
            cells are counted as tiles below).
        edge: Of a tile in pixels.
        fewest: Tiles of a grid.
        most: Tiles of a grid.
        largest_grid: Most tiles along one edge.
        max_patches: Tiles' worth of features that a ``single`` layout is shrunk to; None for no shrink.
        several: A request may have several pictures.
    """

    layout: str
    edge: int
    fewest: int
    most: int
    largest_grid: int
    max_patches: int | None
    several: bool


@dataclass(frozen=True)
class Preset:
    """A published model.

    Attributes:
        name: Name of its file.
        title: As its authors write it.
        checkpoint: Its id on the Hugging Face hub.
        source: Where the shapes come from.
        context_length: Positions it was made for.
        dims: Its shapes.
        group: Patches that are one token.
        tiles: None where a picture is one view.
    """

    name: str
    title: str
    checkpoint: str
    source: str
    context_length: int
    dims: ModelDims
    group: int
    tiles: Tiles | None


def preset_names() -> tuple[str, ...]:
    """All presets."""
    return records.names_in(DIRECTORY)


def load_preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        UsageError: Unknown; lists the known ones.
        LvlmError: Its file is wrong.
    """
    return read_preset(records.path_in(DIRECTORY, name, "shape"))


def read_preset(path: Path) -> Preset:
    """Read a file strictly: nothing missing, nothing unknown.

    Raises:
        LvlmError: Names the file and the entry that does not fit.
    """
    return records.read_named(Preset, path, REMEDY)
