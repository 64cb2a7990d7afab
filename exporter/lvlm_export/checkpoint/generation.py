"""What a checkpoint asks of answers: generation_config.json as transformers reads it.

Rules that hold for greedy answers too are taken along and applied. How tokens are drawn is the
user's choice for every request, and greedy where they choose nothing. Everything else that would
change an answer of ``generate`` is named as not applied.

Source: transformers 5.23, ``GenerationMixin.adjust_generation_fn`` and ``_get_logits_processor``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_export.checkpoint.files import one_reason, read_json
from lvlm_profiles import records
from lvlm_profiles.readers import UnreadableError, check_values
from lvlm_runtime.bundle.generation import END, GenerationRecord
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.rules import NO_RULES, GenerationRules, checked_rules

if TYPE_CHECKING:
    from transformers import GenerationConfig

FILE = "generation_config.json"
# Settings that change an answer and are not applied, with the values that change nothing. Lengths are
# not among them: a request has its own.
_LEFT_OUT: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (1,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "stop_strings": ((), [], ""),
    "max_time": (),
    "token_healing": (False,),
    "watermarking_config": (),
}
# The same where ``do_sample`` is on; without it they change nothing.
_DRAWING: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "temperature": (1,),
    "top_k": (0,),
    "top_p": (1,),
    "min_p": (0,),
    "top_h": (),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
}


def generation_config(directory: Path) -> GenerationConfig:
    """generation_config.json, or where there is none what config.json says of generation.

    Raises:
        LvlmError: The file is damaged, or transformers refuses it.
    """
    present = (directory / FILE).exists()
    if present:
        read_json(directory / FILE)
    from transformers import GenerationConfig

    others = {} if present else {"config_file_name": "config.json", "_from_model_config": True}
    try:
        return GenerationConfig.from_pretrained(directory, **others)
    except Exception as error:  # its checks raise types of their own
        path = directory / (FILE if present else "config.json")
        raise LvlmError(f"{path} is refused by transformers: {one_reason(error)}") from error


def read_rules(directory: Path, vocab_size: int) -> GenerationRecord:
    """Rules of a checkpoint and what of its settings is not applied.

    Args:
        directory: The checkpoint.
        vocab_size: Tokens of its language model.

    Raises:
        LvlmError: A rule of another type than transformers takes, or out of its range, or of a token
            that there is not; a number that is infinite or none.
    """
    config = generation_config(directory)
    rules = checked_rules(
        _rules(config, directory / FILE), vocab_size, directory / FILE, "correct it"
    )
    without_effect = dict(_LEFT_OUT)
    if config.do_sample:
        without_effect.update(_DRAWING)
    left_out: dict[str, Any] = {} if config.eos_token_id is not None else {END: None}
    for name, neutral in without_effect.items():
        value = getattr(config, name, None)
        if value is not None and value not in neutral:
            left_out[name] = value.to_dict() if hasattr(value, "to_dict") else value
    try:
        check_values(left_out)
    except UnreadableError as error:
        raise LvlmError(f"{directory / FILE} cannot be taken along: {error}; correct it") from None
    return GenerationRecord(rules, left_out)


def _rules(config: GenerationConfig, path: Path) -> GenerationRules:
    """The rules, with null for what is off, as transformers has them."""
    values = dataclasses.asdict(NO_RULES)
    for name in values:
        value = getattr(config, name, None)
        if value is not None:
            values[name] = [value] if name == "forced_eos_token_id" and _is_id(value) else value
    # A number of new tokens takes the place of a length, 0 too.
    if config.min_new_tokens is not None:
        values["min_length"] = 0
    return records.read(GenerationRules, values, path, "correct it")


def _is_id(value: object) -> bool:
    return isinstance(value, int)
