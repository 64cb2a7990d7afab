"""The manifest: what a bundle holds, as frozen dataclasses that ``lvlm_profiles.records`` reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lvlm_profiles.shapes.dims import ModelDims
from lvlm_runtime.bundle.placement import HandPlacement
from lvlm_runtime.image.anyres import TILES, TileLayout, kind_of
from lvlm_runtime.image.preprocess import PreprocessSpec

SCHEMA = 4
# What a decoder subgraph takes that counts the patches a token stands for.
SIZE_BIAS = "size_bias"
# How many rows of the caches each new row sees, ``[S]``, where it is not all before it.
SEEN_TO = "seen_to"
# Which is the first of them for layers that have a window, ``[S]``.
SEEN_FROM = "seen_from"
# Which rows of a prompt a row sees: those before it, the whole prompt, or those before it and the
# whole of its picture.
CAUSAL, PREFIX, PICTURES = "causal", "prefix", "pictures"
ATTENTIONS = (CAUSAL, PREFIX, PICTURES)
# Row and column of every token in its picture, ``[B, N, 2]``, for a tower that asks for them.
GRID = "grid"
# Features of an earlier layer of the tower that a decoder layer adds to the visual tokens behind it:
# an output ``plane.<decoder layer>`` of a vision subgraph, and an input of a decoder subgraph.
PLANE = "plane."
# How a key-value buffer lies in memory: ``[1, heads, length, dim]`` or ``[1, length, heads, dim]``.
HEAD_MAJOR, SEQUENCE_MAJOR = "head_major", "sequence_major"


@dataclass(frozen=True)
class TensorRef:
    """A tensor in ``weights.bin``.

    Attributes:
        dtype: numpy name of the element type.
        shape: Its shape.
        offset: Byte where it starts.
        size_bytes: Its length.
        sha256: Of its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class FileRef:
    """A file of the bundle and what it must be."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Subgraph:
    """One weighted subgraph of the chain.

    Attributes:
        name: ``vision.0`` …, ``decoder.0`` …
        graph: Its file.
        site: The site that follows, or None at the end of its chain.
        first_layer: First decoder layer in it (0 for vision).
        last_layer: One past the last decoder layer in it (0 for vision).
        inputs: What a vision subgraph takes, by name; a decoder's beside tokens, positions and
            caches: ``size_bias`` where its attention counts the patches that a token stands for,
            ``seen_to`` where a row sees others than those before it, ``seen_from`` too where layers
            of it have a window, and ``plane.<layer>`` for every layer of it that adds features of an earlier vision layer.
    """

    name: str
    graph: str
    site: str | None
    first_layer: int
    last_layer: int
    inputs: tuple[str, ...] = ()

    @property
    def planes(self) -> tuple[str, ...]:
        """The inputs that layers of a decoder subgraph add behind them."""
        return tuple(name for name in self.inputs if name.startswith(PLANE))


@dataclass(frozen=True)
class Projector:
    """A trained projector with a token count of its own.

    Attributes:
        graph: Its file.
        tokens: Visual tokens that it gives per picture.
        inputs: ``features`` and, where it reads the question, ``query``.
    """

    graph: str
    tokens: int
    inputs: tuple[str, ...]

    @property
    def reads_text(self) -> bool:
        """It takes the question's last hidden state."""
        return "query" in self.inputs


@dataclass(frozen=True)
class Reduction:
    """What one budget does at one site.

    Attributes:
        site: Name of the site, ``vision@5``, ``features@26``, ``projected@0`` or ``decoder@8``.
        tokens_in: Visual tokens before it, per tile (vision, features) or per image.
        tokens_out: Visual tokens after it.
        graph: The reducer's file.
        inputs: The reducer's inputs, by name.
        merges: What leaves is merged into what stays; else it is dropped.
    """

    site: str
    tokens_in: int
    tokens_out: int
    graph: str
    inputs: tuple[str, ...]
    merges: bool


@dataclass(frozen=True)
class LayoutBudget:
    """The decoder side of a budget for one tile layout.

    Attributes:
        layout: Name of the layout.
        packer: Graph from projected tiles to an image's tokens, or None where they are the same.
        tokens_full: Visual tokens per image at ratio 1.0.
        tokens_in: Visual tokens per image that reach the decoder.
        projected: Reduction between projector and decoder, or None.
        decoder: Reductions in the decoder, in order.
        achieved: Share of visual tokens kept, after rounding: in the decoder's last layer, or the
            mean over its layers where the method withdraws them all at one.
    """

    layout: str
    packer: str | None
    tokens_full: int
    tokens_in: int
    projected: Reduction | None
    decoder: tuple[Reduction, ...]
    achieved: float

    @property
    def tokens_projected(self) -> int:
        """Visual tokens per image behind projector and packer, before any reduction there."""
        return self.tokens_in if self.projected is None else self.projected.tokens_in

    @property
    def in_order(self) -> bool:
        """Its packer puts an image's tiles one behind the other, and tokens keep their places."""
        return kind_of(self.layout) == TILES

    @property
    def span(self) -> int:
        """RoPE positions that an image takes: those it takes unreduced, or as packed."""
        kept = self.packer is None or self.in_order
        return self.tokens_full if kept else self.tokens_projected

    @property
    def tokens_out(self) -> int:
        """Visual tokens per image in the decoder's last layer."""
        return self.decoder[-1].tokens_out if self.decoder else self.tokens_in


@dataclass(frozen=True)
class Budget:
    """One ratio turned into integers.

    Attributes:
        ratio: Share of visual tokens kept, as asked for.
        vision: Reductions in the vision encoder, per tile, in order.
        layouts: The rest, per tile layout.
    """

    ratio: float
    vision: tuple[Reduction, ...]
    layouts: tuple[LayoutBudget, ...]

    def layout(self, name: str) -> LayoutBudget:
        """The part for one tile layout."""
        return next(part for part in self.layouts if part.layout == name)


@dataclass(frozen=True)
class TextSpec:
    """What the runtime needs to know of the language model.

    Attributes:
        embed_tokens: The token table ``[vocab, C]``, looked up on the host.
        embed_scales: ``[vocab]``, what its rows are multiplied by where it is int8; else None.
        context_length: Positions the model was made for, prompt and answer together.
        position_rows: RoPE positions of a token: 1, or 3 for time, height and width.
        attention: Which rows of a prompt a row sees, one of ``ATTENTIONS``.
        embed_scale: What rows of the token table are multiplied by, in their element type.
        window: Positions that a row sees in layers with a window, its own included; 0 for none.
        stop_ids: Ids that end an answer.
    """

    layers: int
    hidden_size: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    position_rows: int
    image_token_id: int
    stop_ids: tuple[int, ...]
    embed_tokens: TensorRef
    embed_scales: TensorRef | None
    attention: str = CAUSAL
    embed_scale: float = 1.0
    window: int = 0


@dataclass(frozen=True)
class Manifest:
    """Everything about a bundle but its bytes.

    Attributes:
        schema: Version of this layout.
        content_key: Of the checkpoint, the options and the libraries it was built from.
        checkpoint_key: Of the checkpoint alone.
        versions: Libraries it was built with.
        model: What the checkpoint was called.
        family: Its ``model_type``.
        method: Reduction method, and ``seed`` for methods that draw numbers.
        placement: What of the reduction a user placed by hand.
        precision: Element type of activations, and of weights that are not in ``quantised``.
        quantised: Parts whose linear maps are stored as integers, ``vision``, ``decoder`` and
            ``lm_head`` (with the token table) -> ``int8``, a scale per output, or ``int4``, a scale
            per 32 inputs.
        target: What the graphs were lowered for.
        dialect: Operators that the graphs speak, ``opset24`` or ``decomposed``.
        kv_layout: How the decoder graphs want their caches, ``HEAD_MAJOR`` or ``SEQUENCE_MAJOR``.
        vision_tokens: Tokens per tile before any reduction: patches, or the groups of patches that
            a merger joins.
        preprocess: How a picture becomes pixels.
        layouts: Tile layouts the graphs were made for.
        vision: The vision chain.
        projector: A trained projector behind it, or None where the chain ends with the plain one.
        decoder: The decoder chain.
        assemble: Weight-free graph that puts text and visual embeddings in order.
        lm_head: Final norm and projection; several graphs where it is split along the vocabulary,
            whose logits follow one another.
        text: The language model.
        dims: What the cost model counts with.
        budgets: One per ratio; the first is the default.
        weights: Every tensor of ``weights.bin`` by its SHA-256.
        files: Every file of the bundle but the manifest.
    """

    schema: int
    content_key: str
    checkpoint_key: str
    versions: dict[str, str]
    model: str
    family: str
    method: str
    placement: HandPlacement
    seed: int
    precision: str
    quantised: dict[str, str]
    target: str
    dialect: str
    kv_layout: str
    vision_tokens: int
    preprocess: PreprocessSpec
    layouts: tuple[TileLayout, ...]
    vision: tuple[Subgraph, ...]
    projector: Projector | None
    decoder: tuple[Subgraph, ...]
    assemble: str
    lm_head: tuple[str, ...]
    text: TextSpec
    dims: ModelDims
    budgets: tuple[Budget, ...]
    weights: dict[str, TensorRef]
    files: dict[str, FileRef]

    @property
    def sized(self) -> bool:
        """The decoder counts the patches that a token stands for."""
        return SIZE_BIAS in self.decoder[0].inputs

    @property
    def group(self) -> int:
        """Patches that are one token of the tower."""
        return self.dims.vision.tokens // self.vision_tokens

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of a picture's tokens, where the model asks for their places."""
        return self.preprocess.grid


def to_json(value: Any) -> Any:
    """A dataclass as plain JSON types."""
    return dataclasses.asdict(value)
