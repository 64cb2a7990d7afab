"""A checkpoint's image processor settings as the runtime's ``PreprocessSpec``.

Source: transformers 5.23, ``image_processing_pil_*.py`` of clip, siglip, llava, llava_next,
llava_onevision and got_ocr2, and ``BaseImageProcessor._standardize_kwargs``; files of transformers 4.x have the same keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lvlm_export.families.shared.image_processors import DEFAULTS, WITHOUT_EFFECT
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image.preprocess import RESIZE_EXACT, RESIZE_SHORTEST_EDGE, PreprocessSpec

# Where a user finds the settings; the first counts where both have them.
_FILES = "image_processor in processor_config.json, or else preprocessor_config.json"
_MOST_TILES = 256
# They put tiles together as a grid; their do_pad is about batches.
_ANYRES = ("LlavaNext", "LlavaOnevision")


def preprocess_spec(
    preprocessor_config: Mapping[str, Any], feature_side: int | None = None
) -> PreprocessSpec:
    """The preprocessing that a checkpoint's image processor does.

    Args:
        preprocessor_config: Content of ``preprocessor_config.json``, or of
            ``processor_config.json`` or its ``image_processor`` part.
        feature_side: Features per tile edge of the unreduced vision tower, as ``PreprocessSpec``
            has it; needed for a "single" layout alone.

    Raises:
        LvlmError: An unknown processor, an option that it does not have or a value it cannot take.
    """
    config = preprocessor_config.get("image_processor", preprocessor_config)
    name = _processor_name(config)
    defaults = DEFAULTS[name]
    for key in config:
        if key not in defaults and key not in WITHOUT_EFFECT and config[key] not in (None, False):
            raise LvlmError(
                f"the image processor {name} of this checkpoint sets {key} to {config[key]!r}, "
                f"which may change pixels; known are {', '.join(sorted(defaults))}: remove it "
                f"from {_FILES}, if it has no effect"
            )
    # null is no default: it switches a step off, as it does in transformers.
    options = {key: config.get(key, default) for key, default in defaults.items()}
    if name == "LlavaNext":
        options |= _squares(options)
    normalise, do_pad = bool(options["do_normalize"]), bool(options["do_pad"])
    mean = _per_channel("image_mean", options["image_mean"]) if normalise or do_pad else None
    size: dict[str, Any] = {}
    if options["do_resize"]:
        size = _resize(options["size"], bool(options["default_to_square"]))
    pinpoints = _pinpoints(name, options, size) if name in _ANYRES else None
    return PreprocessSpec(
        pad_to_square=_square_colour(name, do_pad, options["image_mean"]),
        **size,
        resample=_resample(options["resample"]),
        center_crop=_height_width(options["crop_size"]) if options["do_center_crop"] else None,
        rescale_factor=_factor(options["rescale_factor"]) if options["do_rescale"] else None,
        mean=mean if normalise else None,
        std=_spread(options["image_std"]) if normalise else None,
        grid_pinpoints=pinpoints,
        tile_range=_tile_range(options) if name == "GotOcr2" else None,
        feature_side=feature_side,
    )


def _processor_name(config: Mapping[str, Any]) -> str:
    """The key in ``DEFAULTS`` of the class that wrote the file."""
    kind = config.get("image_processor_type") or config.get("feature_extractor_type")
    stem = str(kind).removesuffix("Fast").removesuffix("Pil")
    name = stem.removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if name == stem or name not in DEFAULTS:
        raise LvlmError(
            f"the image_processor_type of this checkpoint is {kind!r}; known are "
            f"{', '.join(known + 'ImageProcessor' for known in DEFAULTS)}: check "
            f"{_FILES}, or add the processor to image_config.py"
        )
    return name


def _resize(size: Any, default_to_square: bool) -> dict[str, Any]:
    """The fields of ``PreprocessSpec`` for a ``size``: int, list or dict."""
    if isinstance(size, int) and not default_to_square:
        size = {"shortest_edge": size}
    if isinstance(size, Mapping):
        # transformers writes every key of its size class, null where unused.
        size = {key: value for key, value in size.items() if value is not None}
        if set(size) == {"shortest_edge"} and _is_edge(size["shortest_edge"]):
            return {"resize": RESIZE_SHORTEST_EDGE, "height": size["shortest_edge"]}
    height, width = _height_width(size)
    return {"resize": RESIZE_EXACT, "height": height, "width": width}


def _height_width(size: Any) -> tuple[int, int]:
    """(height, width) of an int, a list or a dict."""
    if isinstance(size, int):
        size = [size, size]
    if isinstance(size, Mapping):
        size = {key: value for key, value in size.items() if value is not None}
        size = [size["height"], size["width"]] if set(size) == {"height", "width"} else size
    if isinstance(size, list | tuple) and len(size) == 2 and all(_is_edge(edge) for edge in size):
        return size[0], size[1]
    raise LvlmError(
        f"a size of {size!r} in this checkpoint's image processor is not supported; allowed are a "
        'number, "height" and "width", or for size also "shortest_edge" alone, in whole pixels: '
        f"correct {_FILES}"
    )


def _is_edge(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _squares(options: Mapping[str, Any]) -> dict[str, Any]:
    """Size and crop of LLaVA-NeXT's views, which are squares before: one size, and no crop.

    Its file says "shortest_edge" and a crop of the same size, the tile's even where nothing is cropped.
    """
    size, crop = options["size"], options["crop_size"]
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    square = {"height": edge, "width": edge} if _is_edge(edge) else size
    crops = crop is not None and _height_width(crop) != _height_width(square)
    return {"size": square, "do_center_crop": crops}


def _pinpoints(
    name: str, options: Mapping[str, Any], size: Mapping[str, Any]
) -> tuple[tuple[int, int], ...]:
    """The canvases of an anyres processor, whose views must be square tiles."""
    if options["do_center_crop"] or size.get("width", size.get("height")) != size.get("height", 0):
        crop = "no crop of another size" if name == "LlavaNext" else "do_center_crop off"
        raise LvlmError(
            f"{name} tiles need do_resize on, {crop} and a square size; this checkpoint has"
            f" do_center_crop {options['do_center_crop']!r} and size {options['size']!r}: correct"
            f" {_FILES}"
        )
    pairs = options["image_grid_pinpoints"]
    canvases = tuple(map(_height_width, pairs if isinstance(pairs, list | tuple) else ()))
    if not canvases:
        raise LvlmError(
            f"image_grid_pinpoints is {pairs!r}, at least one [height, width] is needed; correct "
            f"{_FILES}"
        )
    return canvases


def _tile_range(options: Mapping[str, Any]) -> tuple[int, int]:
    """Fewest and most tiles of a picture."""
    fewest, most = options["min_patches"], options["max_patches"]
    if not _is_edge(fewest) or not _is_edge(most) or not fewest <= most <= _MOST_TILES:
        raise LvlmError(
            f"min_patches and max_patches of this checkpoint's image processor are {fewest!r} and"
            f" {most!r}, whole numbers from 1 to {_MOST_TILES} in this order are needed; correct"
            f" {_FILES}"
        )
    return fewest, most


def _square_colour(name: str, do_pad: bool, mean: Any) -> tuple[int, int, int] | None:
    """The border colour of pad_to_square, if this processor pads."""
    if do_pad and name not in ("Llava", *_ANYRES):
        raise LvlmError(
            f"the image processor {name} of this checkpoint has do_pad on, which is supported for "
            f"LlavaImageProcessor alone; correct {_FILES}"
        )
    # LLaVA-OneVision always pads several pictures, LLaVA-NeXT never does.
    if name == "LlavaNext" or (not do_pad and name != "LlavaOnevision"):
        return None
    red, green, blue = _per_channel("image_mean", mean)
    return int(red * 255), int(green * 255), int(blue * 255)


def _per_channel(key: str, value: Any) -> tuple[float, float, float]:
    """Three floats of one number or three."""
    values = value if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(_is_number(number) for number in values):
        raise LvlmError(
            f"{key} of this checkpoint's image processor is {value!r}, one number or three (RGB) "
            f"are needed; correct {_FILES}"
        )
    return float(values[0]), float(values[1]), float(values[2])


def _spread(value: Any) -> tuple[float, float, float]:
    """What values are divided by."""
    spread = _per_channel("image_std", value)
    if 0 in spread:
        raise LvlmError(
            f"image_std of this checkpoint's image processor is {value!r}, and values are divided by"
            f" it; correct {_FILES}"
        )
    return spread


def _factor(value: Any) -> float:
    """What values are multiplied by."""
    if not _is_number(value):
        raise LvlmError(
            f"rescale_factor of this checkpoint's image processor is {value!r}, a number is "
            f"needed where do_rescale is on; correct {_FILES}"
        )
    return float(value)


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _resample(value: Any) -> int:
    """Pillow's code of a resize filter."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 5:
        return value
    raise LvlmError(
        f"resample of this checkpoint's image processor is {value!r}, allowed is Pillow's code 0 "
        f"to 5 (3 is bicubic); correct {_FILES}"
    )
