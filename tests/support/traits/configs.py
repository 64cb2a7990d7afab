"""Rows about config.json: windows, rotary embeddings, tiles, types and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lvlm_export.families import FAMILIES
from traits import Trait, edit_json, read_json, trait
from traits.outcomes import built, context_of, refused, same_frequencies, same_weights

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 6,
    "long_factor": [2.0] * 6,
    "original_max_position_embeddings": 256,
}


def changed(check: Any, base: str = "llava", **changes: Any) -> Trait:
    """A row whose trait is some values of config.json, as ``edit_json`` takes them."""

    def write(directory: Path) -> None:
        edit_json(directory / "config.json", **changes)

    write.__doc__ = f"config.json with {changes}"
    return Trait(write, check, base, slow=False)


def rotary(check: Any, slow: bool = False, **parameters: Any) -> Trait:
    """A row whose text model has other rotary embeddings, under the key of transformers 4."""

    def write(directory: Path) -> None:
        config = read_json(directory / "config.json")
        config["text_config"].pop("rope_parameters", None)
        edit_json(
            directory / "config.json",
            text_config={**config["text_config"], "rope_scaling": parameters},
        )

    write.__doc__ = f"text_config.rope_scaling {parameters}"
    return Trait(write, check, "llava", slow)


# An attention window counts where the text model has one.
leftover_window = changed(context_of(2048), text_config__sliding_window=64)
mistral_window = changed(context_of(64), "mistral", text_config__sliding_window=64)
mistral_window_of_null = changed(context_of(2048), "mistral", text_config__sliding_window=None)
mistral_window_of_nothing = changed(
    refused(r"text_config\.sliding_window in .* is 0, a whole number from 1"),
    "mistral",
    text_config__sliding_window=0,
)
qwen2_window_switched_off = changed(
    context_of(2048),
    "siglip",
    text_config__use_sliding_window=False,
    text_config__sliding_window=64,
)
qwen2_window_in_some_layers = changed(
    context_of(64),
    "siglip",
    text_config__use_sliding_window=True,
    text_config__sliding_window=64,
    text_config__max_window_layers=2,
    text_config__layer_types=None,
)
qwen2_window_layers_without_window = changed(
    refused(
        r"layer_types of text_config has 'sliding_attention' and its sliding_window is not set"
    ),
    "siglip",
    text_config__use_sliding_window=False,
    text_config__layer_types=["full_attention", "sliding_attention"] * 2,
)

# Tiles of LLaVA-OneVision.
onevision_plain_anyres = changed(
    refused(r"vision_aspect_ratio 'anyres' is not supported, anyres_max_N is"),
    "onevision",
    vision_aspect_ratio="anyres",
)
onevision_padded = changed(
    refused(r"vision_aspect_ratio 'pad' is not supported"), "onevision", vision_aspect_ratio="pad"
)
onevision_of_no_tiles = changed(
    refused(r"vision_aspect_ratio 'anyres_max_0' is not supported"),
    "onevision",
    vision_aspect_ratio="anyres_max_0",
)
onevision_canvas_of_one_number = changed(
    refused(r"image_grid_pinpoints of config\.json has 384, \[height, width\] in pixels"),
    "onevision",
    image_grid_pinpoints=[384],
)
onevision_of_no_canvas = changed(
    refused(r"image_grid_pinpoints of config\.json is empty"), "onevision", image_grid_pinpoints=[]
)

# Every kind in ROPE_INIT_FUNCTIONS of transformers.
rope_linear = rotary(same_frequencies, type="linear", factor=2.0)
rope_dynamic = rotary(same_frequencies, type="dynamic", factor=2.0)
rope_yarn = rotary(same_frequencies, **YARN)
rope_llama3 = rotary(same_frequencies, **LLAMA3)
rope_long = rotary(refused(r"rope_type 'longrope' of text_config is not supported"), **LONG)
rope_proportional = rotary(
    refused(r"rope_type 'proportional' of text_config is not supported"),
    rope_type="proportional",
    rope_theta=1e4,
)
rope_of_no_kind = rotary(
    refused(r"rope_type 'abf' of text_config is not supported"), rope_type="abf", factor=2.0
)
rope_factor_of_nothing = rotary(
    refused(r"text_config\.rope_scaling\.factor in .* is 0, a number above 0"),
    type="linear",
    factor=0,
)
rope_without_its_factor = rotary(refused(r"config\.json is refused by transformers: "), type="yarn")
rope_of_half_heads = rotary(same_frequencies, rope_type="default", partial_rotary_factor=0.5)
rope_linear_of_half_heads = rotary(
    refused(r"partial_rotary_factor 0\.5 of text_config does not go with rope_type 'linear'"),
    rope_type="linear",
    factor=2.0,
    partial_rotary_factor=0.5,
)
rope_by_layer_type = changed(
    same_frequencies,
    text_config__rope_parameters={
        "full_attention": {"rope_type": "default", "rope_theta": 1e4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
)
rope_as_text = changed(refused(r"config\.json"), text_config__rope_parameters="yarn")
rope_of_null = changed(same_frequencies, text_config__rope_parameters=None)
rope_without_theta = changed(
    same_frequencies, text_config__rope_parameters={"rope_type": "default"}
)
rope_with_theta_beside = changed(
    same_frequencies, text_config__rope_parameters=None, text_config__rope_theta=500000.0
)

# A prompt with a picture is longer than these original contexts, one without is shorter.
rope_linear_built = rotary(built, slow=True, type="linear", factor=4.0)
rope_dynamic_built = rotary(built, slow=True, type="dynamic", factor=4.0)
rope_yarn_built = rotary(built, slow=True, **{**YARN, "original_max_position_embeddings": 32})
rope_llama3_built = rotary(built, slow=True, **{**LLAMA3, "original_max_position_embeddings": 32})

# Types.
unknown_model_type = changed(
    refused(rf"unknown model_type 'bert'; known: {', '.join(FAMILIES)}"),
    model_type="bert",
)
text_type_that_nobody_knows = changed(
    refused(r"config\.json is refused by transformers: .*hal9000"),
    text_config__model_type="hal9000",
)
text_type_of_another_family = changed(
    refused(r"text model 'gpt2' is not supported; known: gemma, gemma3_text, llama, mistral"),
    text_config__model_type="gpt2",
)
tower_of_another_family = changed(
    refused(r"vision tower 'dinov2' is not supported"), vision_config__model_type="dinov2"
)
no_model_type = changed(refused(r"config\.json has no model_type"), model_type=None)
element_type_that_torch_lacks = changed(
    refused(r"config\.json is refused by transformers: .*float7"), dtype="float7"
)
feature_layer_as_text = changed(
    refused(r"config\.json is refused by transformers: .*vision_feature_layer"),
    vision_feature_layer="last",
)
tie_as_text = changed(
    refused(r"config\.json is refused by transformers: .*tie_word_embeddings"),
    tie_word_embeddings="yes",
)
text_part_as_text = changed(refused(r"config\.json is refused by transformers: "), text_config="x")
projector_act_that_nobody_knows = changed(
    refused(r"transformers makes no model of .*swoosh"), projector_hidden_act="swoosh"
)

# Numbers.
width_of_nothing = changed(
    refused(r"text_config\.hidden_size in .* is 0, a whole number from 1"),
    text_config__hidden_size=0,
)
width_as_text = changed(
    refused(r"text_config\.hidden_size in .* is '48', a whole number"),
    text_config__hidden_size="48",
)
vocabulary_as_truth = changed(
    refused(r"text_config\.vocab_size in .* is True, a whole number"), text_config__vocab_size=True
)
layers_without_end = changed(
    refused(r"text_config\.num_hidden_layers in .* is 1000000000, a whole number from 1 to 1000"),
    text_config__num_hidden_layers=10**9,
)
heads_below_nothing = changed(
    refused(r"vision_config\.num_attention_heads in .* is -4, a whole number"),
    vision_config__num_attention_heads=-4,
)
heads_that_do_not_divide = changed(
    refused(
        r"refused by transformers: .*hidden size \(48\) is not a multiple of the number of atten"
    ),
    text_config__num_attention_heads=5,
)
tower_heads_that_do_not_divide = changed(
    refused(
        r"refused by transformers: .*hidden size \(32\) is not a multiple of the number of atten"
    ),
    vision_config__num_attention_heads=5,
)
patch_larger_than_the_picture = changed(
    refused(r"image_size 48 and patch_size 64; the heads must divide the size and a patch fit"),
    vision_config__patch_size=64,
)
tower_without_a_size = changed(
    refused(r"vision_config\.image_size in .* is None, a whole number"),
    vision_config__image_size=None,
)
odd_heads = changed(refused(r"heads of 3; .* the third be even"), text_config__head_dim=3)
key_value_heads_that_do_not_divide = changed(
    refused(
        r"text_config has 4 attention heads, 3 key-value heads and heads of 12; the second must"
    ),
    text_config__num_key_value_heads=3,
)
context_of_nothing = changed(
    refused(r"text_config\.max_position_embeddings in .* is 0, a whole number"),
    text_config__max_position_embeddings=0,
)
theta_of_no_number = changed(
    refused(r"rope_theta in .* is nan, a number above 0"),
    text_config__rope_parameters__rope_theta=float("nan"),
)
theta_without_end = changed(
    refused(r"rope_theta in .* is inf, a number above 0"),
    text_config__rope_parameters__rope_theta=float("inf"),
)
norm_of_nothing = changed(
    refused(r"text_config\.rms_norm_eps in .* is 0\.0, a number above 0"),
    text_config__rms_norm_eps=0.0,
)
spread_of_no_number = changed(
    refused(r"initializer_range in .* is nan, a finite number"),
    text_config__initializer_range=float("nan"),
)
activation_of_another_model = changed(same_weights, text_config__hidden_act="gelu")
activation_that_nobody_knows = changed(
    refused(r"transformers makes no model of .*swoosh"), text_config__hidden_act="swoosh"
)


@trait(
    refused(r"position_embedding\.weight as \[37, 32\] and its config\.json makes it \[50, 32\]")
)
def tower_of_another_resolution(directory: Path) -> None:
    """A configuration and a processor for larger pictures than the tower was trained with."""
    edit_json(directory / "config.json", vision_config__image_size=56)
    edge = {"height": 56, "width": 56}
    edit_json(directory / "preprocessor_config.json", crop_size=edge, size={"shortest_edge": 56})
