"""Rows about answers: where they end, which rules they keep to, what is not applied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import AutoModelForImageTextToText

from lvlm_export.check.reference_io import quiet_transformers
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.checkpoint.generation import read_rules
from lvlm_export.checkpoint.preflight import preflight
from traits import edit_json, trait
from traits.outcomes import refused

GENERATION = "generation_config.json"


def said_once(*sentences: str) -> Callable[[Path], None]:
    """What build and run say of generation_config.json."""

    def check(directory: Path) -> None:
        checkpoint = Checkpoint.open(directory)
        preflight(checkpoint)
        vocab = checkpoint.shape(None).text.vocab_size
        assert tuple(read_rules(directory, vocab).sentences()) == sentences

    return check


def same_end(directory: Path) -> None:
    """An answer ends at the ids at which ``generate`` ends it."""
    with quiet_transformers():
        model = AutoModelForImageTextToText.from_pretrained(directory)
    ids = model.generation_config.eos_token_id
    assert Checkpoint.open(directory).stop_ids == (tuple(ids) if isinstance(ids, list) else (ids,))


@trait(same_end)
def several_ends(directory: Path) -> None:
    """A list of ids that end an answer."""
    edit_json(directory / GENERATION, eos_token_id=[257, 10])


@trait(same_end)
def end_of_the_text_model(directory: Path) -> None:
    """No generation_config.json: the text model's own end."""
    (directory / GENERATION).unlink()
    edit_json(directory / "config.json", text_config__eos_token_id=11)


@trait(
    said_once(
        "applied of generation_config.json: repetition_penalty 1.05",
        "not applied of generation_config.json: do_sample true, temperature 0.7; answers are greedy,"
        " for others give --temperature 0.7",
    )
)
def proposals_of_a_chat_model(directory: Path) -> None:
    """A rule, which is applied, and how to draw tokens, which is the user's choice."""
    proposed = {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.05}
    edit_json(directory / GENERATION, **proposed)


@trait(said_once("generation_config.json names no eos_token_id: config.json's ends answers"))
def no_end_of_answers(directory: Path) -> None:
    """generation_config.json names no end, where generate would go on for ever."""
    (directory / GENERATION).write_text("{}")


@trait(said_once())
def proposals_without_effect(directory: Path) -> None:
    """A temperature that was left beside do_sample false."""
    edit_json(directory / GENERATION, do_sample=False, temperature=0.2, num_beams=1)


@trait(refused(r"suppress_tokens names token 999, and the model has 261"))
def rule_of_another_vocabulary(directory: Path) -> None:
    """A rule about a token that the model does not have."""
    edit_json(directory / GENERATION, suppress_tokens=[999])


@trait(refused(r"no_repeat_ngram_size: expected int, got '2'; correct it"))
def rule_of_another_type(directory: Path) -> None:
    """A number in quotes."""
    edit_json(directory / GENERATION, no_repeat_ngram_size="2")


@trait(refused(r"names no eos_token_id; add it to generation_config\.json"))
def answers_without_end(directory: Path) -> None:
    """No file says which token ends an answer; the base's text_config does, so it goes as well."""
    edit_json(directory / GENERATION, eos_token_id=None)
    edit_json(directory / "config.json", text_config__eos_token_id=None)


@trait(refused(r"eos_token_id of .* is 1\.5, a token's id or a list of them is needed"))
def end_that_is_no_id(directory: Path) -> None:
    """A number that no token has; it was cut to 1 before."""
    edit_json(directory / GENERATION, eos_token_id=1.5)
