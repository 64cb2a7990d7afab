"""Families of checkpoints: the protocol and the table, keyed by HF ``model_type``.

A family is one file here and one line in ``FAMILIES``. It gives the parts of a model; cutting,
tracing, budgets and the runtime never depend on which model it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from lvlm_profiles.registry import resolve
from lvlm_runtime.bundle.manifest import CAUSAL, GRID
from lvlm_runtime.errors import UsageError
from lvlm_runtime.image.anyres import SINGLE, TILES, further_layout, same_layout

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig

    from lvlm_profiles.shapes.dims import ModelDims
    from lvlm_runtime.image.anyres import TileLayout
    from lvlm_runtime.image.preprocess import PreprocessSpec

FAMILIES: dict[str, str] = {
    "gemma3": "lvlm_export.families.gemma3:FAMILY",
    "internvl": "lvlm_export.families.internvl:FAMILY",
    "llava": "lvlm_export.families.llava:FAMILY",
    "llava_next": "lvlm_export.families.llava_next:FAMILY",
    "llava_onevision": "lvlm_export.families.llava_onevision:FAMILY",
    "paligemma": "lvlm_export.families.paligemma:FAMILY",
    "qwen2_5_vl": "lvlm_export.families.qwen2_5_vl:FAMILY",
    "qwen2_vl": "lvlm_export.families.qwen2_vl:FAMILY",
    "qwen3_vl": "lvlm_export.families.qwen3_vl:FAMILY",
}


@dataclass(frozen=True)
class VisionShape:
    """The vision tower as far as it runs.

    Attributes:
        layers: Layers that run, up to ``vision_feature_layer``.
        tokens: Patch tokens per tile.
        prefix: Leading tokens that are not patches (1 for a CLS token).
        hidden_size: Width.
        heads: Attention heads.
        image_size: Height of a tile in pixels, and its width where that is not given.
        scale: Attention's factor on query-key products.
        levels: Layers whose features are joined side by side, 1 for most models.
        group: Patches that the merger joins to one token, one behind the other; reducers keep,
            drop and merge whole groups, and ``tokens`` counts them.
        grid: Rows and columns of the groups where attention asks for their places, else None.
        window: Edge, in groups, of the squares inside of which attention stays; 0 for none.
        whole_layers: Layers whose attention has no window.
        image_width: Width of a tile in pixels; 0 for a square.
        planes: Layers that ran before each plane, the features that the first decoder layers add to
            the visual tokens behind them, one each (DeepStack); empty where there are none.
    """

    layers: int
    tokens: int
    prefix: int
    hidden_size: int
    heads: int
    image_size: int
    scale: float
    levels: int = 1
    group: int = 1
    grid: tuple[int, int] | None = None
    window: int = 0
    whole_layers: tuple[int, ...] = ()
    image_width: int = 0
    planes: tuple[int, ...] = ()

    @property
    def picture(self) -> tuple[int, int]:
        """Height and width of a tile in pixels."""
        return self.image_size, self.image_width or self.image_size

    @property
    def side_rows(self) -> tuple[str, ...]:
        """Rows that travel with the tokens because attention takes them."""
        return () if self.grid is None else (GRID,)

    def window_at(self, layer: int) -> int:
        """Edge of a layer's attention windows, in groups; 0 where it has none."""
        return 0 if layer in self.whole_layers else self.window


@dataclass(frozen=True)
class TextShape:
    """The language model.

    Attributes:
        context_length: Positions it was trained for (its sliding window where that is shorter).
        scale: Attention's factor on query-key products.
        position_rows: RoPE positions of a token: 1, or 3 for time, height and width.
        attention: Which rows of a prompt a row sees: ``causal``, those before it, which is all that
            the layers' own masks say; ``prefix``, the whole prompt; ``pictures``, those before it
            and, for a visual token, its whole picture.
        embed_scale: What rows of the token table are multiplied by at the decoder's input.
        window: Positions that a row sees in ``windowed`` layers, its own included; 0 for none.
        windowed: Layers whose attention has a window, and ``Parts.local_rotary`` where there is one.
    """

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    scale: float
    position_rows: int = 1
    attention: str = CAUSAL
    embed_scale: float = 1.0
    window: int = 0
    windowed: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelShape:
    """Everything about a checkpoint that can be known from its JSON files.

    Attributes:
        square_tiles: Kept tokens of a tile must form a square grid.
        packed: Projected tiles go through a packer before they are an image's tokens.
        visual_tokens: ``(layout, kept per tile) -> tokens the decoder sees per image``.
        dims: What the cost model counts with.
        projector: A trained projector that is a subgraph of its own; None for the plain one.
    """

    vision: VisionShape
    text: TextShape
    image_token_id: int
    preprocess: PreprocessSpec
    layouts: tuple[TileLayout, ...]
    square_tiles: bool
    packed: bool
    visual_tokens: Callable[[TileLayout, int], int]
    dims: ModelDims
    projector: ProjectorShape | None = None


def refuse_image_size(image_size: tuple[int, int] | None, name: str) -> None:
    """A family, or a shape, that brings every picture to one size takes no other.

    Raises:
        UsageError: A size was given.
    """
    if image_size is not None:
        raise UsageError(f"--image-size is for families with tiles; {name} resizes every picture")


def with_layout(shape: ModelShape, other: ModelShape) -> ModelShape:
    """A shape with one tile layout more; as it is where it has one with the same graphs.

    Args:
        shape: Of a checkpoint.
        other: Of the same for another picture size, whose first layout is taken.

    Raises:
        UsageError: The family has no tiles.
    """
    layout = other.layouts[0]
    alike = [each for each in shape.layouts if each.kind == layout.kind]
    if layout.kind not in (SINGLE, TILES):
        raise UsageError(
            "several --image-size are for families that cut a picture into tiles; this one brings every"
            " picture to one size, give one"
        )
    grid, side = (layout.grid_rows, layout.grid_cols), shape.preprocess.feature_side
    for each in alike:
        if (each.grid_rows, each.grid_cols) == grid and (
            side is None or same_layout(each, layout, side)
        ):
            return shape
    layouts = (*alike, further_layout(layout))
    others = tuple(each for each in shape.layouts if each.kind != layout.kind)
    packed = shape.packed or other.packed
    return replace(shape, layouts=(*layouts, *others), packed=packed)


@dataclass(frozen=True)
class Parts:
    """The torch modules of a model, in the order a picture and a prompt pass through them.

    Attributes:
        vision_embed: ``pixel_values [B, 3, H, W] -> [B, P+N, C]``; with ``any_size=True`` for
            pictures of any size.
        embed_any_size: ``pixel_values [B, 3, h, w] -> [B, P+K, C]`` by the model's own
            interpolation, which cannot be traced: the PyTorch reference checks ``any_size`` by it.
        vision_layers: Blocks, each with attention and an MLP behind it.
        project: Feature selection and projector, ``[B, P+K, L*C] -> [B, K, D]``; selection alone
            where there is a trained projector.
        text_layers: Decoder layers.
        rotary: ``(hidden, position_ids) -> (cos, sin)``.
        local_rotary: The same for layers with a window; None where it is the same one.
        norm: Final norm.
        lm_head: Output projection.
        levels: Vision layers that ran before each of the features that are joined side by side;
            empty where only the last layer's features are selected.
        projector: ``(features [B, N, L*C], query [1, 1, D]) -> [B, K, D]``, or None.
        blocks: How a block of the tower runs; None for blocks with ``layer_norm1``, ``self_attn``,
            ``layer_norm2`` and ``mlp``.
        planes: Maps ``[B, N*G, C] -> [B, N, D]`` from a vision layer's states to what a decoder
            layer adds, in the order of ``VisionShape.planes``.
    """

    vision_embed: nn.Module
    embed_any_size: Callable[[Tensor], Tensor]
    vision_layers: Any  # an nn.ModuleList; torch types its elements as Tensor | Module
    project: nn.Module
    text_layers: Any
    rotary: nn.Module
    norm: nn.Module
    lm_head: nn.Module
    levels: tuple[int, ...] = ()
    projector: nn.Module | None = None
    blocks: Any = None  # a module that is a ``VisionBlocks``
    planes: tuple[nn.Module, ...] = ()
    local_rotary: nn.Module | None = None


class VisionBlocks(Protocol):
    """How a block of a tower of another build than CLIP's runs, traced and in the reference."""

    def rows(self, grid: Tensor) -> Any:
        """What attention of every layer takes of the places ``grid [B, N, 2]`` of the groups.

        It is asked where ``VisionShape.grid`` is set; ``attend`` takes None else.
        """
        ...

    def attend(
        self, layer: Any, hidden: Tensor, bias: Tensor | None, rows: Any, windows: Any = None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """First half of a block: ``hidden + attention(norm(hidden)) [B, T, C]``.

        Behind it the attention weights ``[B, H, T, T]``, where it is eager, and query and key
        ``[B, H, T, D]`` as they are multiplied. ``bias [B, 1, T, T]`` is added to the scores.
        ``windows``, a ``WholeWindows`` in place of a bias, is given where ``VisionShape.window`` is
        set and all tokens are there.
        """
        ...

    def feed_forward(self, layer: Any, hidden: Tensor) -> Tensor:
        """Second half: ``hidden + mlp(norm(hidden))``."""
        ...


class Family(Protocol):
    """One kind of checkpoint; what most have alike is what one has that says nothing.

    Attributes:
        summary: One line for ``lvlm-export list families``.
        renames: ``(pattern, replacement)`` that take older checkpoints' tensor names to the
            names of the current HF module tree, applied in order.
        embed_tokens: Parameter name of the token table.
        template: Chat template, in Jinja, of a family whose checkpoints have none; it writes the
            start token itself. None where they have one.
        placeholder: Name of the special token that chat templates write where a picture stands, such
            as ``boi_token``, where this is not the one that the picture's tokens replace; else None.
    """

    summary: str
    renames: tuple[tuple[str, str], ...]
    embed_tokens: str
    template: str | None = None
    placeholder: str | None = None

    def shape(
        self,
        config: PretrainedConfig,
        preprocessor: dict[str, Any],
        image_size: tuple[int, int] | None,
    ) -> ModelShape:
        """Read the configuration; LvlmError names what is not supported.

        Args:
            config: The HF configuration.
            preprocessor: preprocessor_config.json as written.
            image_size: Height and width of the picture that a static tile layout is made for;
                None for the family's default.
        """
        ...

    def model_class(self, config: PretrainedConfig) -> Any:
        """The transformers class that loads a checkpoint of this configuration."""
        ...

    def parts(self, model: nn.Module) -> Parts:
        """Take the HF model apart; nothing is copied."""
        ...

    def packer(self, model: nn.Module, layout: TileLayout, kept: int) -> nn.Module | None:
        """Graph that turns projected tiles into one image's tokens; None where they are equal.

        ``features [tiles, K, D] -> [1, V, D]`` for a layout with a grid, else
        ``[n, K, D] -> [n, V, D]``. With their ``sizes [.., K]`` as a second argument it gives
        those of its tokens as well.
        """
        return None

    def processor_pixels(self, config: PretrainedConfig, tiles: Tensor) -> Tensor:
        """Tiles ``[n, 3, H, W]`` of this project laid out as transformers' image processor gives them.

        Most processors give tiles; some give patches.
        """
        return tiles

    def generate_inputs(
        self,
        model: nn.Module,
        pixel_values: Tensor,
        layout: TileLayout,
        image_sizes: list[tuple[int, int]],
        query_ids: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The visual arguments of ``model.generate`` for pixels ``[n * tiles, 3, H, W]``.

        Args:
            model: The HF model.
            pixel_values: As the runtime's preprocessing gives them.
            layout: The tile layout they have.
            image_sizes: Height and width of every picture.
            query_ids: The question alone ``[1, Q]``, for a projector that reads it.
            input_ids: The prompt ``[1, S]``, for a model that wants every token's kind.
        """
        ...


def load_family(model_type: str) -> Family:
    """The family of a ``model_type``; UsageError that lists the known ones if there is none."""
    return cast("Family", resolve(FAMILIES, model_type, "model_type"))


@dataclass(frozen=True)
class ProjectorShape:
    """A trained projector, from the configuration alone.

    Attributes:
        kind: ``quecc`` or ``tokenpacker``.
        tokens: Visual tokens that it gives per picture.
        cell: Patches along the edge of the cell that a token stands for.
        levels: Tower layers that ran before each of the features it takes, ascending.
        reads_text: It takes the last hidden state of the question.
    """

    kind: str
    tokens: int
    cell: int
    levels: tuple[int, ...]
    reads_text: bool

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what its graph takes."""
        return ("features", "query") if self.reads_text else ("features",)
