"""What the LLaVA-like families share: CLIP and SigLIP towers, text models, feature selection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lvlm_export.families import Parts, TextShape, VisionShape
from lvlm_runtime.errors import LvlmError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Vision tower types and the number of leading tokens that are not patches.
TOWER_PREFIX = {"clip_vision_model": 1, "siglip_vision_model": 0}
TEXT_TYPES = ("llama", "mistral", "qwen2")

# Older llava-hf checkpoints keep the parts at the top level and a `vision_model` in the tower.
RENAMES = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^model\.language_model\.model\.", "model.language_model."),
    (r"^(language_model|vision_tower|multi_modal_projector|image_newline)\b", r"model.\1"),
    (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
)


def layers_that_run(config: PretrainedConfig) -> int:
    """Vision layers up to ``vision_feature_layer`` (hidden_states has one entry more than layers)."""
    wanted, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    if not isinstance(wanted, int):
        raise LvlmError(
            f"vision_feature_layer {wanted!r} is a list; features of several layers are not"
            " supported, use a checkpoint with one feature layer"
        )
    run = wanted if wanted >= 0 else depth + 1 + wanted
    if not 0 < run <= depth:
        raise LvlmError(f"vision_feature_layer {wanted} is outside the tower's {depth} layers")
    return run


def vision_shape(config: PretrainedConfig) -> VisionShape:
    """Shape of a CLIP or SigLIP tower; LvlmError for another one or an odd selection."""
    vision = config.vision_config
    if vision.model_type not in TOWER_PREFIX:
        raise LvlmError(
            f"vision tower {vision.model_type!r} is not supported; known: {', '.join(TOWER_PREFIX)}"
        )
    prefix = TOWER_PREFIX[vision.model_type]
    strategy = config.vision_feature_select_strategy
    # "default" drops the first token whatever it is; only a CLS token may go that way.
    if (strategy == "default") != (prefix == 1):
        raise LvlmError(
            f"vision_feature_select_strategy {strategy!r} does not fit tower {vision.model_type!r}:"
            " 'default' is for towers with a CLS token, 'full' for towers without one"
        )
    side = vision.image_size // vision.patch_size
    return VisionShape(
        layers=layers_that_run(config),
        tokens=side * side,
        prefix=prefix,
        hidden_size=vision.hidden_size,
        heads=vision.num_attention_heads,
        image_size=vision.image_size,
        scale=(vision.hidden_size // vision.num_attention_heads) ** -0.5,
    )


def text_shape(text: Any) -> TextShape:
    """Shape of a Llama-like text model; LvlmError for another one."""
    if text.model_type not in TEXT_TYPES:
        raise LvlmError(
            f"text model {text.model_type!r} is not supported; known: {', '.join(TEXT_TYPES)}"
        )
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    context = text.max_position_embeddings
    window = getattr(text, "sliding_window", None)
    if window and "sliding_attention" in (
        getattr(text, "layer_types", None) or ["sliding_attention"]
    ):
        # Inside its window a sliding layer sees everything, so the graph needs no window.
        context = min(context, window)
    return TextShape(
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=head_dim,
        vocab_size=text.vocab_size,
        context_length=context,
        scale=head_dim**-0.5,
    )


class VisionEmbed(nn.Module):
    """Patch and position embedding, and CLIP's norm before the first layer."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.embeddings = tower.embeddings
        self.pre_layrnorm = getattr(tower, "pre_layrnorm", nn.Identity())

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden: Tensor = self.pre_layrnorm(self.embeddings(pixel_values))
        return hidden


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
    return Parts(
        vision_embed=VisionEmbed(inner.vision_tower),
        vision_layers=inner.vision_tower.encoder.layers[: layers_that_run(config)],
        project=Project(inner.multi_modal_projector, TOWER_PREFIX[config.vision_config.model_type]),
        text_layers=inner.language_model.layers,
        rotary=inner.language_model.rotary_emb,
        norm=inner.language_model.norm,
        lm_head=model.lm_head,
        embed_tokens="model.language_model.embed_tokens.weight",
    )
