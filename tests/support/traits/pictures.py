"""Rows about picture files: the pixels that the model sees are those of transformers' own processor.

The files are those of ``tests/support/pictures.py``. Rows of ``METADATA`` are whole pictures that
transformers refuses for what stands beside the pixels; there its processor is given the pixels alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_utils import load_image as load_image_of_transformers

import pictures
from lvlm_export.check.reference_io import quiet_transformers
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image.anyres import IMAGE_LAYOUT
from lvlm_runtime.image.preprocess import preprocess
from traits import Trait, trait

FILE = "picture"
Check = Callable[[Path], None]


def ours(directory: Path) -> np.ndarray:
    """What our model sees of the picture in a checkpoint's directory."""
    spec = Checkpoint.open(directory).shape(None).preprocess
    return preprocess([directory / FILE], spec, IMAGE_LAYOUT).pixel_values


def theirs(directory: Path, picture: Image.Image) -> np.ndarray:
    """What transformers' model sees of a picture."""
    with quiet_transformers():
        processor = AutoImageProcessor.from_pretrained(directory, backend="pil")
    return np.stack(processor(picture, return_tensors="np")["pixel_values"])


def same_picture(directory: Path) -> None:
    """Transformers reads the same file, and sees the same."""
    picture = load_image_of_transformers(str(directory / FILE))
    np.testing.assert_array_equal(ours(directory), theirs(directory, picture))


def same_without_metadata(name: str) -> Check:
    """Transformers does not read the file; of its pixels it sees the same."""

    def check(directory: Path) -> None:
        with pytest.raises(Exception, match=r"."):  # whatever Pillow raises
            load_image_of_transformers(str(directory / FILE))
        picture = pictures.pixels_of(name)
        np.testing.assert_array_equal(ours(directory), theirs(directory, picture))

    return check


def refused_picture(match: str) -> Check:
    """Reading the picture is one line that matches."""

    def check(directory: Path) -> None:
        with pytest.raises(LvlmError) as caught:
            ours(directory)
        assert re.search(match, str(caught.value))
        assert "\n" not in str(caught.value)

    return check


def row(name: str, write: Callable[[], bytes], check: Check) -> Trait:
    """A row of a picture file."""

    def put(directory: Path) -> None:
        (directory / FILE).write_bytes(write())

    put.__doc__ = f"A picture: {name.replace('_', ' ')}."
    return trait(check)(put)


for _name, _write in pictures.READ_BY_BOTH.items():
    globals()[_name] = row(_name, _write, same_picture)
for _name, (_write, _) in pictures.METADATA.items():
    globals()[_name] = row(_name, _write, same_without_metadata(_name))


@trait(same_picture, slow=True)
def telephone_of_64_megapixels(directory: Path) -> None:
    """9248x6936 pixels, above the bound that Pillow warns at half of."""
    Image.new("L", (9248, 6936), 128).save(directory / FILE, "PNG", compress_level=1)


@trait(same_picture, slow=True)
def telephone_of_108_megapixels(directory: Path) -> None:
    """12000x9000 pixels."""
    Image.new("L", (12_000, 9000), 128).save(directory / FILE, "JPEG", quality=1)


@trait(refused_picture(r"Pillow mode 'I;16' .* which 8-bit RGB cannot hold"))
def sixteen_bit_grey(directory: Path) -> None:
    """Transformers cuts every value above 255, which leaves a white picture."""
    Image.fromarray(np.full((40, 60), 30_000, np.uint16)).save(directory / FILE, "PNG")


@trait(refused_picture(r"takes .* GB of memory to prepare for this model, 2 GB are allowed"))
def a_line_of_pixels(directory: Path) -> None:
    """30,000,000 x 1 pixels, a file of kilobytes that takes gigabytes to resize."""
    Image.new("L", (30_000_000, 1)).save(directory / FILE, "PNG")


@trait(refused_picture(r"is a damaged or truncated picture"))
def truncated_picture(directory: Path) -> None:
    """Half of a file."""
    data = pictures.saved(pictures.picture(), "PNG")
    (directory / FILE).write_bytes(data[: len(data) // 2])
