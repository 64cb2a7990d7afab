"""FLOPs and memory traffic of every stage of a request, from shapes alone.

Two conventions are kept apart:

- **Exact** (``Amount.flops``): a product of an ``[m, k]`` and a ``[k, n]`` matrix is ``2 m n k``
  operations, a multiplication and an addition each; keys and values have their own (fewer) heads;
  the attention of a prompt is counted as the full square although a causal kernel may skip half.
  Norms, softmax, activation functions and positions are not counted. Rooflines use this one.
- **The papers'** (``paper_layer_flops``): ``4 n d² + 2 n² d + 2 n d m`` per decoder layer, which
  counts a multiply-add once, all heads full, and an MLP of two maps; ``3 n d m`` for a gated one
  (SparseVLM's code). Published tables use it; it is never mixed with the other.

Traffic is counted in elements: weights are read once per graph call, every linear map reads its
input and writes its output, attention reads query, keys and values and writes its result. Score
matrices stay on the chip, as in a fused kernel. All of it is an estimate from shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, isqrt

from lvlm_profiles.cost.reducers import reducer_amount
from lvlm_profiles.cost.units import Amount, linear, moved_only
from lvlm_profiles.shapes.dims import Cut, ModelDims, TextDims, TokenPath, VisionDims

__all__ = [
    "Amount",
    "Cut",
    "ModelDims",
    "TextDims",
    "TokenPath",
    "VisionDims",
    "Work",
    "by_graph",
    "decode_works",
    "kv_elements",
    "paper_layer_flops",
    "prefill_works",
    "relative_flops",
    "table_elements",
    "text_weight_elements",
    "total",
    "weight_elements",
]


@dataclass(frozen=True)
class Work:
    """One part of one graph call.

    Attributes:
        part: ``patch_embedding``, ``layers``, ``planes``, ``projector``, ``reducer``, ``packer``,
            ``embedding``, ``assemble`` or ``lm_head``.
        graph: The graph call it belongs to, as the runtime's recorder names it.
        phase: ``vision``, ``prefill`` or ``decode``, as the recorder names it.
        tokens: Tokens that enter it, over all tiles or images.
        amount: What it costs.
    """

    part: str
    graph: str
    phase: str
    tokens: int
    amount: Amount


def paper_layer_flops(tokens: float, width: int, mlp: int, gated: bool = False) -> float:
    """A decoder layer as papers count it; see the module's text.

    Source: arXiv:2403.06764 §4.2 (``2 n d m``); SparseVLM's code for a gated MLP (``3 n d m``).
    """
    maps = 3 if gated else 2
    return 4 * tokens * width**2 + 2 * tokens**2 * width + maps * tokens * width * mlp


def relative_flops(
    layer: int, share_removed: float, tokens: int, visual: int, width: int, mlp: int, layers: int
) -> float:
    """FLOPs of a prefill that is pruned once, as a share of the whole one, as papers count.

    Args:
        layer: Index of the layer at whose input tokens are pruned; the layers before it run whole.
        share_removed: Share of the visual tokens that is pruned.
        tokens: Tokens of the prompt.
        visual: The visual ones among them.
        width: Hidden size.
        mlp: Inner size of the MLP.
        layers: Decoder layers.

    Source: arXiv:2403.06764 §4.2.
    """
    whole = paper_layer_flops(tokens, width, mlp)
    rest = paper_layer_flops(tokens - round(share_removed * visual), width, mlp)
    return (layer * whole + (layers - layer) * rest) / (layers * whole)


def prefill_works(dims: ModelDims, path: TokenPath) -> tuple[Work, ...]:
    """Everything up to the first token's logits, in order."""
    return (*_vision_works(dims, path), *_prompt_works(dims, path))


def decode_works(dims: ModelDims, path: TokenPath, step: int) -> tuple[Work, ...]:
    """Everything for one further token.

    Args:
        dims: The model.
        path: The request.
        step: 0 for the token after the first one; the caches grow by one each step.
    """
    text = dims.text
    works = [Work("embedding", "embedding", "decode", 1, moved_only(2 * text.width))]
    for graph, first, last in _groups(text, path):
        filled = path.prompt_tokens(first) + step + 1
        amount = _decoder_layer(text, 1, filled, path.sized).times(last - first)
        works.append(Work("layers", graph, "decode", 1, amount))
    return (*works, _lm_head(text, "decode"))


def by_graph(works: Iterable[Work]) -> dict[tuple[str, str], Amount]:
    """Sums per ``(phase, graph)``, in order."""
    sums: dict[tuple[str, str], Amount] = {}
    for work in works:
        key = work.phase, work.graph
        sums[key] = sums.get(key, Amount()) + work.amount
    return sums


def total(works: Iterable[Work]) -> Amount:
    """The sum."""
    return sum((work.amount for work in works), Amount())


def weight_elements(dims: ModelDims) -> int:
    """Parameters of what runs, biases and norms left out (below 0.1 % in a real model)."""
    vision = dims.vision
    tower = vision.layers * (4 * vision.width**2 + 2 * vision.width * vision.mlp)
    tower += vision.channels * vision.patch**2 * vision.width
    tower += (vision.tokens + vision.prefix) * vision.width
    projector = sum(wide * narrow for wide, narrow in dims.projector)
    return tower + projector * (1 + len(vision.planes)) + text_weight_elements(dims.text)


def text_weight_elements(text: TextDims) -> int:
    """The same of the language model alone, token table and head included."""
    return text.layers * _decoder_layer(text, 0, 0).weights + table_elements(text)


def table_elements(text: TextDims) -> int:
    """The same of token table and head, which may be one."""
    return (1 if text.tied else 2) * text.vocab * text.width


def kv_elements(dims: ModelDims, path: TokenPath) -> int:
    """The key-value caches as the runtime allocates them: prompt and answer, per layer group.

    Where the decoder counts sizes, a group has one row of them too.
    """
    text = dims.text
    return sum(
        ((last - first) * _kv_row(text) + path.sized)
        * (path.prompt_tokens(first) + path.answer_tokens)
        for _, first, last in _groups(text, path)
    )


def _vision_works(dims: ModelDims, path: TokenPath) -> Iterator[Work]:
    vision, tiles = dims.vision, path.tiles
    tokens, first, index = path.tower_tokens(vision.tokens), 0, 0
    for cut in path.at("pixels"):
        if cut.reduces:
            yield Work(
                "reducer", cut.name, "vision", tiles * cut.tokens_in, _resize(cut, vision, tiles)
            )
    embed = linear(tiles * tokens, vision.channels * vision.patch**2, vision.width)
    yield Work("patch_embedding", "vision.0", "vision", tiles * tokens, embed)
    # MLP that the next subgraph starts with, because the cut before it lies inside a layer.
    begun = False
    for cut in path.at("vision", "features"):
        rows = tokens + vision.prefix
        layers = _vision_layers(vision, tiles, rows, first, cut.layer, begun, index == 0)
        planes = _planes(dims, path, tiles * tokens, first + (not begun), cut.layer)
        begun = cut.stage == "vision"
        if begun:
            # Scores at a site are those of all pairs.
            layers += _vision_attention(vision, tiles, rows, cut.layer, False)
        yield Work("layers", f"vision.{index}", "vision", tiles * tokens, layers)
        if planes.flops:
            yield Work("planes", f"vision.{index}", "vision", tiles * tokens, planes)
        if cut.reduces:
            amount = reducer_amount(path.method, cut, dims, tiles, tiles * rows)
            yield Work("reducer", cut.name, "vision", tiles * tokens, amount)
        first, index, tokens = cut.layer + begun, index + 1, cut.tokens_out * path.group
    graph, rows = f"vision.{index}", tokens + vision.prefix
    layers = _vision_layers(vision, tiles, rows, first, vision.layers, begun, index == 0)
    yield Work("layers", graph, "vision", tiles * tokens, layers)
    planes = _planes(dims, path, tiles * tokens, first + (not begun), vision.layers)
    if planes.flops:
        yield Work("planes", graph, "vision", tiles * tokens, planes)
    if path.query_tokens:
        rows = path.query_tokens
        question = _decoder_layer(dims.text, rows, rows).times(dims.text.layers)
        yield Work("layers", "query", "prefill", rows, question)
    merged = tiles * tokens // path.group
    maps = [linear(merged, wide, narrow) for wide, narrow in dims.projector]
    where = "projector" if path.condensed else graph
    yield Work("projector", where, "vision", tiles * tokens, sum(maps, Amount()))
    if path.packed:
        rows = merged + path.images * path.image_tokens
        yield Work("packer", "packer", "vision", tiles * tokens, moved_only(rows * dims.text.width))


def _prompt_works(dims: ModelDims, path: TokenPath) -> Iterator[Work]:
    text, images = dims.text, path.images
    lookup = moved_only(2 * path.text_tokens * text.width)
    yield Work("embedding", "embedding", "prefill", path.text_tokens, lookup)
    for cut in path.at("projected"):
        if cut.reduces:
            rows = images * cut.tokens_in
            amount = reducer_amount(path.method, cut, dims, images, rows, path.text_tokens)
            yield Work("reducer", cut.name, "prefill", rows, amount)
    length = path.prompt_tokens(-1)
    if images:
        # Planes are put among rows of text as the pictures are.
        put = moved_only(2 * length * text.width).times(1 + len(dims.vision.planes))
        yield Work("assemble", "assemble", "prefill", length, put)
    cuts = {cut.layer: cut for cut in path.at("decoder")}
    for graph, first, last in _groups(text, path):
        rows = path.prompt_tokens(first)
        if first in cuts and cuts[first].reduces:
            before = path.prompt_tokens(first - 1)
            cut = cuts[first]
            amount = reducer_amount(path.method, cut, dims, images, before, path.text_tokens)
            yield Work("reducer", cut.name, "prefill", before, amount)
        amount = _decoder_layer(text, rows, rows, path.sized).times(last - first)
        yield Work("layers", graph, "prefill", rows, amount)
    yield _lm_head(text, "prefill")


def _groups(text: TextDims, path: TokenPath) -> Iterator[tuple[str, int, int]]:
    """Decoder subgraphs: name, first layer, one past the last."""
    bounds = [0, *(cut.layer for cut in path.at("decoder")), text.layers]
    for index, (first, last) in enumerate(pairwise(bounds)):
        yield f"decoder.{index}", first, last


def _resize(cut: Cut, vision: VisionDims, tiles: int) -> Amount:
    """Square pictures made smaller: a product with one block of weights for each of two axes."""
    sides = isqrt(cut.tokens_in), isqrt(cut.tokens_out)
    block = sides[0] // gcd(*sides)
    before, after = (vision.patch * side for side in sides)
    planes = tiles * vision.channels
    flops = 2 * planes * after * (before + after) * block
    return Amount(flops, activations=planes * (before**2 + 2 * before * after + after**2))


def _vision_layers(
    vision: VisionDims, tiles: int, rows: int, first: int, last: int, begun: bool, full: bool
) -> Amount:
    """Whole layers ``[first, last)``, and before them the MLP of a layer that was cut.

    ``full``: no token has left yet.
    """
    mlp = linear(tiles * rows, vision.width, vision.mlp)
    mlp += linear(tiles * rows, vision.mlp, vision.width)
    attention = (_vision_attention(vision, tiles, rows, at, full) for at in range(first, last))
    whole = sum(attention, mlp.times(last - first))
    return whole + mlp if begun else whole


def _vision_attention(vision: VisionDims, tiles: int, rows: int, layer: int, full: bool) -> Amount:
    """Projections and attention of one layer; every tile attends to itself only.

    Inside windows as long as all tokens are there (those at an edge count as whole ones), and under a
    mask over all pairs, which costs what attention to the whole tile does, when some have left.
    """
    width = vision.width
    windowed = vision.window > 0 and layer not in vision.whole_layers
    seen = min(vision.window, rows) if windowed and full else rows
    mask = rows**2 if windowed and not full else 0
    maps = linear(tiles * rows, width, width).times(4)
    moved = 4 * rows * width + mask
    return maps + Amount(flops=4 * tiles * rows * seen * width, activations=tiles * moved)


def _planes(dims: ModelDims, path: TokenPath, patches: int, first: int, last: int) -> Amount:
    """Features for the decoder's first layers, of layers that end in a graph: ``first`` to ``last``."""
    merged = patches // path.group
    maps = [linear(merged, wide, narrow) for wide, narrow in dims.projector]
    ending = sum(first <= ran <= last for ran in dims.vision.planes)
    return sum(maps, Amount()).times(ending)


def _decoder_layer(text: TextDims, rows: int, filled: int, sized: bool = False) -> Amount:
    """One layer for ``rows`` new tokens with ``filled`` rows in the cache, these included.

    ``sized``: it reads what is added to its scores, for every row and filled row.
    """
    inner, pair = text.heads * text.head_dim, _kv_row(text)
    amount = linear(rows, text.width, inner) + linear(rows, text.width, pair)
    amount += Amount(
        flops=4 * rows * filled * inner,
        activations=2 * rows * inner + sized * rows * filled,
        kv_read=filled * pair,
        kv_written=rows * pair,
    )
    amount += linear(rows, inner, text.width)
    wide = linear(rows, text.width, text.mlp)
    return amount + wide.times(2 if text.gated else 1) + linear(rows, text.mlp, text.width)


def _lm_head(text: TextDims, phase: str) -> Work:
    """Logits of the last token only."""
    return Work("lm_head", "lm_head", phase, 1, linear(1, text.width, text.vocab))


def _kv_row(text: TextDims) -> int:
    """Elements of one token's key and value in one layer."""
    return 2 * text.kv_heads * text.head_dim
