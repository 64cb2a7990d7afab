"""What the LLaVA-like families share: CLIP and SigLIP towers, text models, feature selection."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lvlm_export.families import Parts, VisionShape
from lvlm_export.families.shared.projectors import projector_shape
from lvlm_export.families.shared.texts import text_dims, text_shape
from lvlm_profiles.shapes.dims import ModelDims, VisionDims
from lvlm_runtime.errors import LvlmError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Vision tower types and the number of leading tokens that are not patches.
TOWER_PREFIX = {"clip_vision_model": 1, "siglip_vision_model": 0}
EMBED_TOKENS = "model.language_model.embed_tokens.weight"
# Older llava-hf checkpoints keep the parts at the top level and a ``vision_model`` in the tower.
RENAMES = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^model\.language_model\.model\.", "model.language_model."),
    (r"^(language_model|vision_tower|multi_modal_projector|image_newline)\b", r"model.\1"),
    (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
)


def feature_levels(config: PretrainedConfig) -> tuple[int, ...]:
    """Vision layers that ran before each of the features that are joined side by side, as listed.

    They are the indices of transformers' ``hidden_states``, which has one entry more than layers.

    Raises:
        LvlmError: A layer that the tower does not have, or its embeddings.
    """
    projector = projector_shape(config)
    if projector is not None:
        return projector.levels
    wanted, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    layers = [wanted] if isinstance(wanted, int) else list(wanted)
    levels = tuple(layer if layer >= 0 else depth + 1 + layer for layer in layers)
    if not levels or not 0 < min(levels) <= max(levels) <= depth:
        raise LvlmError(f"vision_feature_layer {wanted} is outside the tower's {depth} layers")
    return levels


def tower_shape(vision: Any, levels: tuple[int, ...]) -> VisionShape:
    """Shape of a CLIP or SigLIP tower of which features are taken behind some of its layers.

    Args:
        vision: ``vision_config``.
        levels: Layers that ran before each of the features.

    Raises:
        LvlmError: Another tower, or sizes that do not go together.
    """
    if vision.model_type not in TOWER_PREFIX:
        raise LvlmError(
            f"vision tower {vision.model_type!r} is not supported; known: {', '.join(TOWER_PREFIX)}"
        )
    if not isinstance(vision.image_size, int) or not isinstance(vision.patch_size, int):
        raise LvlmError(
            f"vision_config has image_size {vision.image_size!r} and patch_size"
            f" {vision.patch_size!r}, one number each is needed; correct config.json"
        )
    if vision.hidden_size % vision.num_attention_heads or vision.patch_size > vision.image_size:
        raise LvlmError(
            f"vision_config has hidden_size {vision.hidden_size}, {vision.num_attention_heads}"
            f" attention heads, image_size {vision.image_size} and patch_size {vision.patch_size};"
            " the heads must divide the size and a patch fit the image; correct config.json"
        )
    side = vision.image_size // vision.patch_size
    return VisionShape(
        layers=max(levels),
        tokens=side * side,
        prefix=TOWER_PREFIX[vision.model_type],
        hidden_size=vision.hidden_size,
        heads=vision.num_attention_heads,
        image_size=vision.image_size,
        scale=(vision.hidden_size // vision.num_attention_heads) ** -0.5,
        levels=len(levels),
    )


def vision_shape(config: PretrainedConfig) -> VisionShape:
    """Shape of a LLaVA's tower; LvlmError for another one or an unsuitable selection."""
    shape = tower_shape(config.vision_config, feature_levels(config))
    strategy = config.vision_feature_select_strategy
    # "default" drops the first token whatever it is; only a CLS token may be dropped like that.
    if (strategy == "default") != (shape.prefix == 1):
        kind = config.vision_config.model_type
        raise LvlmError(
            f"vision_feature_select_strategy {strategy!r} does not fit tower {kind!r}:"
            " 'default' is for towers with a CLS token, 'full' for towers without one"
        )
    return shape


def vision_dims(vision: Any, shape: VisionShape) -> VisionDims:
    """Sizes of a tower with an ``intermediate_size`` and square patches, for the cost model."""
    return VisionDims(
        layers=shape.layers,
        width=shape.hidden_size,
        mlp=vision.intermediate_size,
        heads=shape.heads,
        patch=vision.patch_size,
        tokens=shape.tokens * shape.group,
        prefix=shape.prefix,
    )


def model_dims(config: PretrainedConfig) -> ModelDims:
    """Sizes of a tower, a two-layer projector and a Llama-like text model, for the cost model."""
    vision, text = vision_shape(config), text_shape(config.text_config)
    return ModelDims(
        vision=vision_dims(config.vision_config, vision),
        projector=_projector_maps(config, vision.hidden_size, text.hidden_size),
        text=text_dims(config),
    )


def _projector_maps(
    config: PretrainedConfig, width: int, text_width: int
) -> tuple[tuple[int, int], ...]:
    """``(in, out)`` of the linear maps that every patch goes through.

    Of a trained projector these are queries, keys and values; what it does after them, with few
    tokens, is left out.
    """
    projector = projector_shape(config)
    several = (len(feature_levels(config)) * width, width if projector else text_width)
    if projector is None:
        return (several, (text_width, text_width))
    inner = (width, width)
    return (several, inner, several, inner, inner, inner)


class VisionEmbed(nn.Module):
    """Patch and position embedding, and CLIP's norm before the first layer.

    With ``any_size`` the position table is resized to the picture's patches, as transformers does
    with ``interpolate_pos_encoding`` (whose branch on the size cannot be traced).
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.embeddings = tower.embeddings
        self.pre_layrnorm = getattr(tower, "pre_layrnorm", nn.Identity())

    def forward(self, pixel_values: Tensor, any_size: bool = False) -> Tensor:
        embed = self.resized if any_size else self.embeddings
        hidden: Tensor = self.pre_layrnorm(embed(pixel_values))
        return hidden

    def interpolated(self, pixel_values: Tensor) -> Tensor:
        """As ``forward`` with ``any_size``, by transformers' own branch on the size."""
        embedded = self.embeddings(pixel_values, interpolate_pos_encoding=True)
        hidden: Tensor = self.pre_layrnorm(embedded)
        return hidden

    def resized(self, pixel_values: Tensor) -> Tensor:
        """Embeddings ``[B, P+K, C]`` of pictures ``[B, 3, h, w]``."""
        patches = self.embeddings.patch_embedding(pixel_values)
        table = self.embeddings.position_embedding.weight.unsqueeze(0)
        side = math.isqrt(table.shape[1])
        prefix = table.shape[1] - side**2
        grid = table[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        size = patches.shape[2:]
        resized = nn.functional.interpolate(grid, size, mode="bicubic", align_corners=False)
        hidden: Tensor = (patches + resized).flatten(2).transpose(1, 2)
        if not prefix:
            return hidden
        cls = self.embeddings.class_embedding + table[:, :prefix]
        return torch.cat((cls.expand(hidden.shape[0], -1, -1), hidden), dim=1)


class Project(nn.Module):
    """Drop the prefix token where the model does, then the MLP projector."""

    def __init__(self, projector: nn.Module, prefix: int) -> None:
        super().__init__()
        self.projector = projector
        self.prefix = prefix

    def forward(self, hidden: Tensor) -> Tensor:
        features: Tensor = self.projector(hidden[:, self.prefix :])
        return features


def llava_parts(model: Any) -> Parts:
    """Parts of a ``Llava*ForConditionalGeneration``."""
    inner, config = model.model, model.config
    projector, levels = projector_shape(config), feature_levels(config)
    select = inner.multi_modal_projector if projector is None else nn.Identity()
    embed, rotary = VisionEmbed(inner.vision_tower), inner.language_model.rotary_emb
    if rotary.rope_type == "dynamic":
        # Inside max_position_embeddings its frequencies are the default's; looking for a request
        # that is longer cannot be traced.
        rotary.rope_type = "default"
    return Parts(
        vision_embed=embed,
        embed_any_size=embed.interpolated,
        vision_layers=inner.vision_tower.encoder.layers[: max(levels)],
        project=Project(select, TOWER_PREFIX[config.vision_config.model_type]),
        text_layers=inner.language_model.layers,
        rotary=rotary,
        norm=inner.language_model.norm,
        lm_head=model.lm_head,
        levels=levels if len(levels) > 1 else (),
        projector=None if projector is None else inner.multi_modal_projector,
    )
