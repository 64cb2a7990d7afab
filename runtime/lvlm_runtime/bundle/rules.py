"""A manifest against itself: what no type states and every reader relies on.

Each rule is a function that yields the entries that break it. They hold in the order of ``RULES``:
a later one may rely on an earlier one. Nothing here opens a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from lvlm_profiles.records import mismatch
from lvlm_runtime.bundle.chain_rules import (
    MOST,
    Finding,
    chains_are_whole,
    layers_are_contiguous,
    ratios_are_shares,
    short,
    tokens_fall,
)
from lvlm_runtime.bundle.files import REBUILD, WEIGHTS, has_place
from lvlm_runtime.bundle.manifest import (
    ATTENTIONS,
    GRID,
    HEAD_MAJOR,
    SEQUENCE_MAJOR,
    Budget,
    Manifest,
    Reduction,
    TensorRef,
)
from lvlm_runtime.image.preprocess import RESIZE_EXACT, RESIZE_SHORTEST_EDGE

Rule = Callable[[Manifest], Iterator[Finding]]

# Bytes of an element; the types that a bundle stores.
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}
ITEM_BYTES |= {"int8": 1, "uint8": 1}
# Of linear maps; integers of four bits lie two to a byte and are listed as such.
QUANTISED = {"vision": ("int8", "int4"), "decoder": ("int8", "int4"), "lm_head": ("int8",)}
PRECISIONS = ("float32", "float16", "bfloat16")
DIALECTS = ("opset24", "decomposed")
SHA256 = re.compile(r"[0-9a-f]{64}")
# What file systems, shells and terminals agree on; no name begins with a dot.
PLAIN_NAME = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,199}/){0,3}[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,199}"
)


def check_manifest(manifest: Manifest, path: Path) -> None:
    """Refuse a manifest that contradicts itself.

    Args:
        manifest: What was read.
        path: Its file, for the message.

    Raises:
        LvlmError: Names the first entry that breaks a rule, what it should be and what it is.
    """
    for rule in RULES:
        for entry, wanted, got in rule(manifest):
            raise mismatch(path, entry, wanted, got, REBUILD)


def files_are_inside(manifest: Manifest) -> Iterator[Finding]:
    """Names of files are relative, plain, and none that has another use in a bundle."""
    for name, ref in manifest.files.items():
        if not PLAIN_NAME.fullmatch(name):
            yield "files", "plain names inside the bundle", short(name)
        elif has_place(name):
            yield "files", "names that have no other use", short(name)
        if ref.size_bytes < 0:
            yield f"files.{short(name)}", "a size", str(ref.size_bytes)
        if not SHA256.fullmatch(ref.sha256):
            yield f"files.{short(name)}", "a SHA-256", short(ref.sha256)
    if WEIGHTS not in manifest.files:
        yield "files", WEIGHTS, "none"


def words_are_known(manifest: Manifest) -> Iterator[Finding]:
    """Enumerations have one of their values."""
    resizes = (None, RESIZE_EXACT, RESIZE_SHORTEST_EDGE)
    for entry, value, known in (
        ("precision", manifest.precision, PRECISIONS),
        ("dialect", manifest.dialect, DIALECTS),
        ("kv_layout", manifest.kv_layout, (HEAD_MAJOR, SEQUENCE_MAJOR)),
        ("text.attention", manifest.text.attention, ATTENTIONS),
        ("preprocess.resize", manifest.preprocess.resize, resizes),
        ("preprocess.resample", manifest.preprocess.resample, range(6)),
    ):
        if value not in known:
            yield entry, f"one of {', '.join(map(str, known))}", short(value)
    for part, name in manifest.quantised.items():
        if name not in QUANTISED.get(part, ()):
            wanted = " or ".join(f"{each} as {'|'.join(QUANTISED[each])}" for each in QUANTISED)
            yield "quantised", wanted, f"{short(part)} as {short(name)}"


def graphs_are_listed(manifest: Manifest) -> Iterator[Finding]:
    """Every graph that something names is a file of the bundle."""
    named = [stage.graph for stage in (*manifest.vision, *manifest.decoder)]
    named += [manifest.assemble, *manifest.lm_head]
    named += [] if manifest.projector is None else [manifest.projector.graph]
    for budget in manifest.budgets:
        named += [cut.graph for cut in _reductions(budget)]
        named += [part.packer for part in budget.layouts if part.packer is not None]
    for name in named:
        if name not in manifest.files or not name.endswith(".onnx"):
            yield "files", "every graph that a chain or a budget names", f"no {short(name)}"


def counts_are_positive(manifest: Manifest) -> Iterator[Finding]:
    """Sizes are from 1 up, and none is beyond every model."""
    text, dims = manifest.text, manifest.dims
    counts = {
        f"text.{name}": getattr(text, name)
        for name in (
            *("layers", "hidden_size", "kv_heads", "head_dim", "vocab_size", "context_length"),
        )
    }
    counts["vision_tokens"] = manifest.vision_tokens
    names = ("layers", "width", "mlp", "heads", "patch", "tokens", "channels")
    counts |= {f"dims.vision.{name}": getattr(dims.vision, name) for name in names}
    names = ("layers", "width", "mlp", "heads", "kv_heads", "head_dim", "vocab")
    counts |= {f"dims.text.{name}": getattr(dims.text, name) for name in names}
    for index, pair in enumerate(dims.projector):
        counts |= {f"dims.projector[{index}][{side}]": pair[side] for side in (0, 1)}
    if manifest.projector is not None:
        counts["projector.tokens"] = manifest.projector.tokens
    for index, layout in enumerate(manifest.layouts):
        counts[f"layouts[{index}].tiles"] = layout.tiles
    counts["text.position_rows"] = text.position_rows
    if not 0 < text.embed_scale <= MOST:
        yield "text.embed_scale", f"more than 0 and at most {MOST}", f"{text.embed_scale:g}"
    for entry, value in counts.items():
        if not 1 <= value <= MOST:
            yield entry, f"1 to {MOST}", str(value)
    zeros = {"dims.vision.prefix": dims.vision.prefix, "text.image_token_id": text.image_token_id}
    zeros["text.window"] = text.window
    zeros |= {f"text.stop_ids[{index}]": value for index, value in enumerate(text.stop_ids)}
    for index, layout in enumerate(manifest.layouts):
        for name in ("grid_rows", "grid_cols", "image_height", "image_width"):
            zeros[f"layouts[{index}].{name}"] = getattr(layout, name)
    for entry, value in zeros.items():
        if not 0 <= value <= MOST:
            yield entry, f"0 to {MOST}", str(value)


def pictures_can_be_made(manifest: Manifest) -> Iterator[Finding]:
    """The image processor's numbers are pixels, colours and factors."""
    spec = manifest.preprocess
    pixels = [("height", spec.height), ("width", spec.width), ("feature_side", spec.feature_side)]
    pixels += [("center_crop", each) for each in spec.center_crop or ()]
    pixels += [("grid_pinpoints", each) for pair in spec.grid_pinpoints or () for each in pair]
    for name, value in pixels:
        if value is not None and not 1 <= value <= MOST:
            yield f"preprocess.{name}", f"1 to {MOST}", str(value)
    own = [spec.factor, spec.min_pixels, spec.max_pixels]
    if own != [None] * 3 and not all(each is not None and 1 <= each <= MOST for each in own):
        yield "preprocess", f"factor, min_pixels and max_pixels of 1 to {MOST}", short(own)
    elif spec.grid is not None and math.prod(spec.grid) != manifest.vision_tokens:
        wanted = f"a size of {manifest.vision_tokens} tokens"
        yield "preprocess", wanted, f"{spec.height} x {spec.width}"
    if manifest.dims.vision.tokens % max(1, manifest.vision_tokens):
        wanted = "whole groups of dims.vision.tokens"
        yield "vision_tokens", wanted, str(manifest.vision_tokens)
    grid_inputs = any(GRID in stage.inputs for stage in manifest.vision)
    if (manifest.text.position_rows > 1 or grid_inputs) and spec.grid is None:
        yield "preprocess.factor", "what a token's place follows from", "none"
    if (spec.resize is not None and spec.height is None) or (
        spec.resize == RESIZE_EXACT and spec.width is None
    ):
        yield "preprocess", "a size to resize to", "none"
    for value in spec.pad_to_square or ():
        if not 0 <= value <= 255:
            yield "preprocess.pad_to_square", "a colour of 0 to 255", str(value)
    for name, values in (
        ("mean", spec.mean),
        ("std", spec.std),
        ("rescale_factor", (spec.rescale_factor,)),
    ):
        for factor in values or ():
            if factor is not None and (not math.isfinite(factor) or (name == "std" and not factor)):
                yield f"preprocess.{name}", "finite numbers, none to divide by 0", str(factor)


def tensors_are_inside(manifest: Manifest) -> Iterator[Finding]:
    """Every tensor lies in the weight file and is as long as its shape and type say."""
    tensors = {f"weights.{key}": ref for key, ref in manifest.weights.items()}
    embed = manifest.text.embed_tokens
    end = manifest.files[WEIGHTS].size_bytes
    tensors |= {"text.embed_tokens": embed}
    if manifest.text.embed_scales is not None:
        tensors |= {"text.embed_scales": manifest.text.embed_scales}
    for entry, ref in tensors.items():
        item = ITEM_BYTES.get(ref.dtype)
        if item is None:
            yield f"{entry}.dtype", f"one of {', '.join(ITEM_BYTES)}", short(ref.dtype)
        elif any(size < 0 for size in ref.shape) or ref.size_bytes != math.prod(ref.shape) * item:
            shape = short(list(ref.shape))
            yield f"{entry}.size_bytes", f"that of {shape} in {ref.dtype}", str(ref.size_bytes)
        elif ref.offset < 0 or ref.offset + ref.size_bytes > end:
            yield f"{entry}.offset", f"a place in the {end} bytes of {WEIGHTS}", _place(ref)
        elif not SHA256.fullmatch(ref.sha256):
            yield f"{entry}.sha256", "a SHA-256", short(ref.sha256)
    for key, ref in manifest.weights.items():
        if key != ref.sha256:
            yield "weights", "tensors by their SHA-256", short(key)
    if embed.sha256 not in manifest.weights:
        yield "text.embed_tokens.sha256", "one of the weights", short(embed.sha256)
    if embed.shape != (manifest.text.vocab_size, manifest.text.hidden_size):
        wanted = f"[{manifest.text.vocab_size}, {manifest.text.hidden_size}]"
        yield "text.embed_tokens.shape", wanted, short(list(embed.shape))
    yield from _scales_fit(manifest)
    for index, token in enumerate(manifest.text.stop_ids):
        if token >= manifest.text.vocab_size:
            yield (
                f"text.stop_ids[{index}]",
                f"a token below {manifest.text.vocab_size}",
                str(token),
            )


def _scales_fit(manifest: Manifest) -> Iterator[Finding]:
    """A token table of integers has a scale for every row, any other has none."""
    table, scales = manifest.text.embed_tokens, manifest.text.embed_scales
    wanted = manifest.quantised.get("lm_head", manifest.precision)
    if table.dtype != wanted:
        yield "text.embed_tokens.dtype", wanted, short(table.dtype)
    elif (scales is not None) != (table.dtype == "int8"):
        yield "text.embed_scales", "scales of an int8 table and no others", short(scales)
    elif scales is not None:
        if (scales.dtype, scales.shape) != (manifest.precision, table.shape[:1]):
            wanted = f"{manifest.precision} {list(table.shape[:1])}"
            yield "text.embed_scales", wanted, f"{short(scales.dtype)} {short(list(scales.shape))}"
        if scales.sha256 not in manifest.weights:
            yield "text.embed_scales.sha256", "one of the weights", short(scales.sha256)


RULES: tuple[Rule, ...] = (
    files_are_inside,
    words_are_known,
    chains_are_whole,
    layers_are_contiguous,
    graphs_are_listed,
    counts_are_positive,
    pictures_can_be_made,
    tensors_are_inside,
    ratios_are_shares,
    tokens_fall,
)


def _reductions(budget: Budget) -> Iterator[Reduction]:
    yield from budget.vision
    for part in budget.layouts:
        yield from part.decoder
        if part.projected is not None:
            yield part.projected


def _place(ref: TensorRef) -> str:
    return f"{ref.size_bytes} bytes at {ref.offset}"
