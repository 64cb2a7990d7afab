"""What ``run`` says of the rules that a checkpoint has for its answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import PICTURE, typed
from lvlm_runtime.bundle.generation import GenerationRecord
from lvlm_runtime.prompt.rules import GenerationRules

RECORD = GenerationRecord(
    GenerationRules(no_repeat_ngram_size=1), {"do_sample": True, "temperature": 0.7}
)
APPLIED = "applied of generation_config.json: no_repeat_ngram_size 1"
LEFT_OUT = (
    "not applied of generation_config.json: do_sample true, temperature 0.7; answers are greedy"
)


@pytest.fixture
def question(tiny_llava: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a command that asks a bundle with rules."""
    monkeypatch.setattr("lvlm_runtime.session.read_generation", lambda *_: RECORD)
    bundle = str(tiny_llava / "bundle")
    return ["run", bundle, "What is it?", "--image", str(PICTURE), "--max-new-tokens", "8"]


def test_what_is_applied_and_what_is_not_is_said_once(question: list[str]) -> None:
    said = typed(*question).stderr
    assert said.count(APPLIED) == said.count(LEFT_OUT) == 1


def test_rules_can_be_left_out(question: list[str]) -> None:
    result = typed(*question, "--no-model-rules")
    assert APPLIED not in result.stderr.splitlines()
    left_out = "not applied of generation_config.json: no_repeat_ngram_size 1, do_sample true"
    assert left_out in result.stderr
    assert result.stdout != typed(*question).stdout


def test_what_the_user_chooses_is_not_said_to_be_left_out(question: list[str]) -> None:
    assert "not applied" not in typed(*question, "--temperature", "0.7").stderr


def test_json_holds_it(question: list[str]) -> None:
    content = json.loads(typed(*question, "--json").stdout)
    assert content["generation_config"][0] == APPLIED
