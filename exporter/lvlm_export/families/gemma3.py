"""Gemma 3: SigLIP, 4 x 4 patches a token, Gemma text with windows; a picture sees the whole of itself.

A tower of 64 x 64 patches gives 256 tokens: each is the mean of 4 x 4 patches, which a reducer keeps, drops
and merges as one. In the decoder visual tokens of one picture see one another, beside what is before
them. Most layers have a window and rotary embeddings of their own; a window counts positions, and a token
that stays keeps its own, so what a row sees does not move when others leave. A ranking by attention of a
layer with a window leaves it out, or tokens that the last row does not see would all score nothing. Rows of the token table are
multiplied by the root of their width, those of the picture are not.

``do_pan_and_scan``, crops of a picture with text between them, is off in the published files and is not
supported. Activations of the published weights grow beyond what fp16 holds (65,504): take fp32, or bf16 in
TensorRT, and look at what the parity gate says of fp16.
Source: arXiv:2503.19786; transformers 5.23, ``models/gemma3``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lvlm_export.families import (
    Family,
    ModelShape,
    Parts,
    TextShape,
    VisionShape,
    refuse_image_size,
)
from lvlm_export.families.shared.image_config import preprocess_spec
from lvlm_export.families.shared.shuffle import CellEmbed, SiglipBlocks
from lvlm_export.families.shared.texts import text_dims, text_shape
from lvlm_export.families.shared.towers import (
    EMBED_TOKENS,
    RENAMES,
    VisionEmbed,
    tower_shape,
    vision_dims,
)
from lvlm_profiles.shapes.dims import ModelDims
from lvlm_runtime.bundle.manifest import PICTURES
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.image.anyres import IMAGE_LAYOUT, TileLayout

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# What the processor writes before and behind a picture's tokens.
MARKS = ("\n\n<start_of_image>", "<end_of_image>\n\n")
LOCAL, GLOBAL = "sliding_attention", "full_attention"


class Gemma3(Family):
    """One view per image, a token for every 4 x 4 patches, its tokens between two marks."""

    summary = (
        "Gemma 3: SigLIP, mean of 4 x 4 patches, layers with windows, pictures that see themselves"
    )
    renames = RENAMES
    embed_tokens = EMBED_TOKENS
    placeholder = "boi_token"

    def shape(
        self,
        config: PretrainedConfig,
        preprocessor: dict[str, Any],
        image_size: tuple[int, int] | None,
    ) -> ModelShape:
        refuse_image_size(image_size, "gemma3")
        vision, text = _vision_shape(config), _text_shape(config.text_config)
        return ModelShape(
            vision=vision,
            text=text,
            image_token_id=config.image_token_id,
            preprocess=preprocess_spec(preprocessor),
            layouts=(replace(IMAGE_LAYOUT, marks=MARKS),),
            square_tiles=False,
            packed=False,
            visual_tokens=lambda _layout, kept: kept,
            dims=ModelDims(
                vision=vision_dims(config.vision_config, vision),
                projector=((vision.hidden_size, text.hidden_size),),
                text=text_dims(config),
            ),
        )

    def model_class(self, config: PretrainedConfig) -> Any:
        from transformers import Gemma3ForConditionalGeneration

        return Gemma3ForConditionalGeneration

    def parts(self, model: nn.Module) -> Parts:
        whole: Any = model
        inner = whole.model
        tower, language = inner.vision_tower, inner.language_model
        projector = inner.multi_modal_projector
        embed = CellEmbed(VisionEmbed(tower), projector.patches_per_image, projector.kernel_size)
        return Parts(
            vision_embed=embed,
            embed_any_size=embed,
            vision_layers=tower.encoder.layers,
            project=MeanProject(inner),
            text_layers=language.layers,
            rotary=KindRotary(language.rotary_emb, GLOBAL),
            local_rotary=KindRotary(language.rotary_emb, LOCAL),
            norm=language.norm,
            lm_head=whole.lm_head,
            blocks=SiglipBlocks(),
        )

    def generate_inputs(
        self,
        model: nn.Module,
        pixel_values: Tensor,
        layout: TileLayout,
        image_sizes: list[tuple[int, int]],
        query_ids: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        assert input_ids is not None
        whole: Any = model
        kinds = (input_ids == whole.config.image_token_id).to(torch.int64)
        return {"pixel_values": pixel_values, "token_type_ids": kinds}


class MeanProject(nn.Module):
    """Cells of patches to tokens: ``[B, N*G, C] -> [B, N, D]``."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.norm, self.projector = inner.vision_tower.post_layernorm, inner.multi_modal_projector
        self.group = self.projector.kernel_size**2

    def forward(self, hidden: Tensor) -> Tensor:
        patches = self.norm(hidden)
        cells = patches.reshape(hidden.shape[0], -1, self.group, hidden.shape[-1]).mean(dim=2)
        normed = self.projector.mm_soft_emb_norm(cells)
        tokens: Tensor = torch.matmul(normed, self.projector.mm_input_projection_weight)
        return tokens


class KindRotary(nn.Module):
    """Rotary embedding of the layers of one kind: ``(hidden, position_ids) -> (cos, sin)``."""

    def __init__(self, rotary: nn.Module, kind: str) -> None:
        super().__init__()
        self.rotary, self.kind = rotary, kind

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        turned: tuple[Tensor, Tensor] = self.rotary(hidden, position_ids, self.kind)
        return turned


def _vision_shape(config: PretrainedConfig) -> VisionShape:
    """Shape of the tower; LvlmError for one whose patches make no whole cells."""
    vision, count = config.vision_config, config.mm_tokens_per_image
    shape = tower_shape(vision, (vision.num_hidden_layers,))
    side = math.isqrt(shape.tokens)
    across = math.isqrt(count) if isinstance(count, int) and count > 0 else 0
    if shape.prefix or not across or across**2 != count or side % across:
        raise LvlmError(
            f"mm_tokens_per_image {count!r} does not fit a {vision.model_type} of {side} x {side} patches,"
            " a square number of cells of whole patches of a siglip_vision_model does; correct"
            " config.json"
        )
    return replace(shape, tokens=count, group=(side // across) ** 2)


def _text_shape(text: Any) -> TextShape:
    """Shape of the text model; LvlmError for what its published checkpoints do not have."""
    if text.model_type != "gemma3_text":
        raise LvlmError(
            f"text model {text.model_type!r} is not supported in gemma3, gemma3_text is"
        )
    for name in (
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "use_bidirectional_attention",
    ):
        if getattr(text, name):
            raise LvlmError(
                f"{name} of text_config is {getattr(text, name)!r}, which Gemma 3 does not have and is"
                " not supported; take it out of config.json"
            )
    windowed = tuple(n for n, kind in enumerate(text.layer_types) if kind == LOCAL)
    if windowed and not text.sliding_window:
        raise LvlmError(
            "layer_types of text_config has 'sliding_attention' and its sliding_window is not set;"
            " set it in config.json"
        )
    return replace(
        text_shape(text),
        scale=text.query_pre_attn_scalar**-0.5,
        attention=PICTURES,
        window=text.sliding_window if windowed else 0,
        windowed=windowed,
    )


FAMILY = Gemma3()
