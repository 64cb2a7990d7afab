"""Text models that families have in common: their shapes, rotary embeddings and windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lvlm_export.families import TextShape
from lvlm_profiles.shapes.dims import TextDims
from lvlm_runtime.errors import LvlmError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Text models, and whether layers of theirs have an attention window.
WINDOWED: dict[str, Callable[[Any], bool]] = {
    "gemma": lambda _text: False,
    # Its windows are in the graph.
    "gemma3_text": lambda _text: False,
    "llama": lambda _text: False,
    "mistral": lambda text: text.sliding_window is not None,
    "qwen2": lambda text: "sliding_attention" in (text.layer_types or ()),
    "qwen2_vl_text": lambda text: "sliding_attention" in (text.layer_types or ()),
    "qwen2_5_vl_text": lambda text: "sliding_attention" in (text.layer_types or ()),
    "qwen3_vl_text": lambda _text: False,
}
TEXT_TYPES = tuple(WINDOWED)
# Those that multiply rows of the token table by the root of their width.
SCALED = ("gemma", "gemma3_text")
# Of transformers' ROPE_INIT_FUNCTIONS, those whose frequencies are the same at every length.
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


def text_shape(text: Any) -> TextShape:
    """Shape of a Llama-like text model; LvlmError for another one or one that cannot be built."""
    if text.model_type not in TEXT_TYPES:
        raise LvlmError(
            f"text model {text.model_type!r} is not supported; known: {', '.join(TEXT_TYPES)}"
        )
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    head_dim = getattr(text, "head_dim", None)
    if head_dim is None and text.hidden_size % heads:
        raise LvlmError(
            f"num_attention_heads {heads} of text_config does not divide its hidden_size"
            f" {text.hidden_size}; correct config.json"
        )
    head_dim = head_dim or text.hidden_size // heads
    if heads % kv_heads or head_dim % 2:
        raise LvlmError(
            f"text_config has {heads} attention heads, {kv_heads} key-value heads and heads of"
            f" {head_dim}; the second must divide the first and the third be even; correct"
            " config.json"
        )
    check_rope(text)
    return TextShape(
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=text.vocab_size,
        # Inside its window a sliding layer sees everything, so the graph needs no window.
        context_length=min(text.max_position_embeddings, attention_window(text)),
        scale=head_dim**-0.5,
        embed_scale=text.hidden_size**0.5 if text.model_type in SCALED else 1.0,
    )


def attention_window(text: Any) -> int:
    """Positions that the narrowest attention layer sees, the whole context where it has no window.

    Which configurations use their ``sliding_window`` is read from the models of transformers 5.23:
    Llama never, Mistral in every layer, Qwen2 in layers of type ``sliding_attention``.

    Raises:
        LvlmError: Layers with a window and no window given.
    """
    window, whole = getattr(text, "sliding_window", None), int(text.max_position_embeddings)
    if not WINDOWED[text.model_type](text):
        return whole
    if window is None:
        raise LvlmError(
            "layer_types of text_config has 'sliding_attention' and its sliding_window is not set;"
            " set it, or use_sliding_window too, in config.json"
        )
    return int(window)


def check_rope(text: Any) -> None:
    """LvlmError for rotary embeddings whose frequencies follow the length of each request.

    A graph holds one set of frequencies. Of "dynamic" that is enough: inside max_position_embeddings
    it is the default.
    """
    given = text.rope_parameters or {}
    # Some models have one for every kind of layer.
    nested = {key: each for key, each in given.items() if isinstance(each, Mapping)}
    for parameters in nested.values() if nested else (given,):
        kind, part = parameters.get("rope_type"), parameters.get("partial_rotary_factor", 1.0)
        if kind not in ROPE_TYPES:
            raise LvlmError(
                f"rope_type {kind!r} of text_config is not supported; known: {', '.join(ROPE_TYPES)}"
            )
        if part != 1.0 and kind != "default":
            # These text models turn whole heads; the default of transformers does not look at the part.
            raise LvlmError(
                f"partial_rotary_factor {part!r} of text_config does not go with rope_type {kind!r};"
                " take it out of config.json"
            )


def text_dims(config: PretrainedConfig) -> TextDims:
    """Sizes of a Llama-like text model, for the cost model."""
    text = text_shape(config.text_config)
    tied = config.tie_word_embeddings or getattr(config.text_config, "tie_word_embeddings", False)
    return TextDims(
        layers=text.layers,
        width=text.hidden_size,
        mlp=config.text_config.intermediate_size,
        gated=True,
        heads=text.heads,
        kv_heads=text.kv_heads,
        head_dim=text.head_dim,
        vocab=text.vocab_size,
        tied=bool(tied),
    )
