"""InternVL 2.5 to 3.5 in transformers' own layout: InternViT, pixel shuffle, Qwen text, tiles.

A picture is stretched over the grid of square tiles whose aspect ratio is nearest to its own, and
the whole picture follows as one tile more; a bundle is built for one grid (``--image-size``), and a
picture of another is letterboxed to it. The tokens of the tiles follow one another between two marks.
A token is a group of 2 x 2 patches that the pixel shuffle joins: patches are put in this order once,
behind their positions, so that the shuffle is a view and takes what a reducer leaves. A token keeps
its position; a tile keeps as many tokens in the tower as every other, and in the decoder the tokens of
all tiles are ranked together.

Checkpoints that bring code of their own (``internvl_chat``) are not loaded; their authors publish
the same weights in this layout (``-hf``).
Source: arXiv:2412.05271, arXiv:2504.10479; transformers 5.23, ``models/internvl`` and
``models/got_ocr2``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lvlm_export.families import Family, ModelShape, Parts, VisionShape
from lvlm_export.families.shared.image_config import preprocess_spec
from lvlm_export.families.shared.shuffle import CellEmbed, JoinTiles
from lvlm_export.families.shared.texts import text_dims, text_shape
from lvlm_export.families.shared.towers import EMBED_TOKENS, RENAMES
from lvlm_profiles.shapes.dims import ModelDims, VisionDims
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image.anyres import TileLayout, tiles_layout

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# What the processor writes before and behind a picture's tokens.
MARKS = ("<img>", "</img>")


class InternVl(Family):
    """A grid of tiles and the whole picture behind it, a token for every 2 x 2 patches."""

    summary = "InternVL 3 (-hf): InternViT with CLS, pixel shuffle of 2 x 2 patches, tiles, Qwen2"
    renames = RENAMES
    embed_tokens = EMBED_TOKENS

    def shape(
        self,
        config: PretrainedConfig,
        preprocessor: dict[str, Any],
        image_size: tuple[int, int] | None,
    ) -> ModelShape:
        vision, text = _vision_shape(config), text_shape(config.text_config)
        spec = preprocess_spec(preprocessor)
        assert spec.tile_range is not None
        height, width = image_size or vision.picture
        layout = tiles_layout(height, width, vision.image_size, *spec.tile_range, MARKS)
        joined = vision.group * vision.hidden_size
        return ModelShape(
            vision=vision,
            text=text,
            image_token_id=config.image_token_id,
            preprocess=spec,
            layouts=(layout,),
            square_tiles=False,
            packed=layout.tiles > 1,
            visual_tokens=lambda layout, kept: layout.tiles * kept,
            dims=ModelDims(
                vision=VisionDims(
                    layers=vision.layers,
                    width=vision.hidden_size,
                    mlp=config.vision_config.intermediate_size,
                    heads=vision.heads,
                    patch=config.vision_config.patch_size[0],
                    tokens=vision.tokens * vision.group,
                    prefix=vision.prefix,
                ),
                projector=((joined, text.hidden_size), (text.hidden_size, text.hidden_size)),
                text=text_dims(config),
            ),
        )

    def model_class(self, config: PretrainedConfig) -> Any:
        from transformers import InternVLForConditionalGeneration

        return InternVLForConditionalGeneration

    def parts(self, model: nn.Module) -> Parts:
        whole: Any = model
        inner = whole.model
        tower, config = inner.vision_tower, inner.vision_tower.config
        rows = config.image_size[0] // config.patch_size[0]
        embed = CellEmbed(tower.embeddings, rows, _cell(whole.config), prefix=1)
        return Parts(
            vision_embed=embed,
            embed_any_size=embed,
            vision_layers=tower.encoder.layer,
            project=ShuffleProject(inner),
            text_layers=inner.language_model.layers,
            rotary=inner.language_model.rotary_emb,
            norm=inner.language_model.norm,
            lm_head=whole.lm_head,
            blocks=InternVitBlocks(),
        )

    def packer(self, model: nn.Module, layout: TileLayout, kept: int) -> nn.Module | None:
        return JoinTiles(layout.tiles) if layout.tiles > 1 else None

    def generate_inputs(
        self,
        model: nn.Module,
        pixel_values: Tensor,
        layout: TileLayout,
        image_sizes: list[tuple[int, int]],
        query_ids: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        return {"pixel_values": pixel_values}


class ShuffleProject(nn.Module):
    """Cells of patches to tokens: ``[B, 1+N*G, C] -> [B, N, D]``."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.norm, self.projector = inner.vision_tower.layernorm, inner.multi_modal_projector
        self.group = _cell(inner.config) ** 2

    def forward(self, hidden: Tensor) -> Tensor:
        patches = self.norm(hidden)[:, 1:]
        cells = patches.reshape(hidden.shape[0], -1, self.group * hidden.shape[-1])
        tokens: Tensor = self.projector(cells)
        return tokens


class InternVitBlocks(nn.Module):
    """How InternViT's blocks run: see ``VisionBlocks``. Queries and keys are those behind a norm."""

    def rows(self, grid: Tensor) -> None:
        """Nothing: positions were added to the patches."""

    def attend(
        self, layer: Any, hidden: Tensor, bias: Tensor | None, rows: Any
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        from transformers.models.internvl import modeling_internvl as internvl

        attention, normed = layer.attention, layer.layernorm_before(hidden)
        images, count, _ = hidden.shape
        heads = (images, count, attention.num_heads, attention.head_dim)
        query = attention.q_norm(attention.q_proj(normed)).reshape(heads).transpose(1, 2)
        key = attention.k_norm(attention.k_proj(normed)).reshape(heads).transpose(1, 2)
        value = attention.v_proj(normed).reshape(heads).transpose(1, 2)
        function = ALL_ATTENTION_FUNCTIONS.get_interface(
            attention.config._attn_implementation, internvl.eager_attention_forward
        )
        out, weights = function(attention, query, key, value, bias, scaling=attention.scale)
        out = attention.projection_layer(out.reshape(images, count, -1))
        attended: Tensor = hidden + layer.lambda_1 * out
        return attended, weights, query, key

    def feed_forward(self, layer: Any, hidden: Tensor) -> Tensor:
        result: Tensor = hidden + layer.lambda_2 * layer.mlp(layer.layernorm_after(hidden))
        return result


def _cell(config: PretrainedConfig) -> int:
    """Edge, in patches, of the cells that the pixel shuffle joins; LvlmError where they are none."""
    ratio = config.downsample_ratio
    cell = round(1 / ratio) if ratio > 0 else 0
    if cell < 1 or cell * ratio != 1:
        raise LvlmError(
            f"downsample_ratio {ratio!r} is not supported, 1 divided by a whole number is (0.5);"
            " correct config.json"
        )
    return cell


def _vision_shape(config: PretrainedConfig) -> VisionShape:
    """Shape of the tower; LvlmError for what the pixel shuffle or the layout does not take."""
    vision, cell = config.vision_config, _cell(config)
    select = config.vision_feature_layer, config.vision_feature_select_strategy
    if select != (-1, "default"):
        raise LvlmError(
            f"vision_feature_layer and vision_feature_select_strategy are {select!r}, supported are"
            " -1 and 'default': correct config.json"
        )
    (height, width), (patch, across) = vision.image_size, vision.patch_size
    side, width_of_model = height // patch, vision.hidden_size
    if height != width or patch != across or height % patch or side % cell or not side:
        raise LvlmError(
            f"vision_config has image_size {height} x {width} and patch_size {patch} x {across};"
            f" supported are squares of whole cells of {cell} x {cell} patches: correct config.json"
        )
    if width_of_model % vision.num_attention_heads:
        raise LvlmError(
            f"vision_config has {vision.num_attention_heads} heads for a width of {width_of_model},"
            " which they must divide: correct config.json"
        )
    return VisionShape(
        layers=vision.num_hidden_layers,
        tokens=(side // cell) ** 2,
        prefix=1,
        hidden_size=width_of_model,
        heads=vision.num_attention_heads,
        image_size=height,
        scale=(width_of_model // vision.num_attention_heads) ** -0.5,
        group=cell * cell,
    )


FAMILY = InternVl()
