"""Rows about the image processor: what it gives the tower, and the numbers of its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from traits import Trait, edit_json, trait
from traits.outcomes import refused


def processed(check: Any, base: str = "llava", **changes: Any) -> Trait:
    """A row whose trait is some values of preprocessor_config.json."""

    def write(directory: Path) -> None:
        edit_json(directory / "preprocessor_config.json", **changes)

    write.__doc__ = f"preprocessor_config.json with {changes}"
    return Trait(write, check, base, slow=False)


mean_of_no_number = processed(
    refused(r"image_mean of .* is nan, one number or three"), image_mean=float("nan")
)
spread_of_nothing = processed(
    refused(r"image_std of .* is \[0, 1, 1\], and values are divided by it"), image_std=[0, 1, 1]
)
processor_canvases_as_number = processed(
    refused(r"image_grid_pinpoints is 7, at least one"), "onevision", image_grid_pinpoints=7
)


@trait(refused(r"the image processor gives pictures of 40 x 40 and the vision tower takes 48 x 48"))
def crop_smaller_than_the_tower(directory: Path) -> None:
    """A processor of another resolution."""
    edit_json(directory / "preprocessor_config.json", crop_size={"height": 40, "width": 40})


@trait(refused(r"the image processor gives pictures whose size follows theirs"))
def no_crop(directory: Path) -> None:
    """Shortest edge and no crop: wide pictures stay wide."""
    edit_json(directory / "preprocessor_config.json", do_center_crop=False)


@trait(refused(r"gives pictures of 40 x 48 and the vision tower takes 48 x 48"), base="siglip")
def pictures_that_are_no_squares(directory: Path) -> None:
    """A resize to another size than the tower's."""
    edit_json(directory / "preprocessor_config.json", size={"height": 40, "width": 48})
