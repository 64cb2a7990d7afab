"""generation_config.json: what is applied, what is said not to be, and what ``generate`` makes of it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from lvlm_export.check.parity import prepare_request, synthetic_samples
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.checkpoint.generation import read_rules
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.generation import FILE, GenerationRecord, read_generation
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.prompt.rules import NO_RULES, GenerationRules
from lvlm_runtime.session import ARGMAX, Session

VOCAB = 261


def record_of(directory: Path, **content: Any) -> GenerationRecord:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 257, **content}))
    return read_rules(directory, VOCAB)


def test_rules_are_read_as_transformers_names_them(tmp_path: Path) -> None:
    record = record_of(
        tmp_path,
        eos_token_id=257,
        no_repeat_ngram_size=2,
        repetition_penalty=1.1,
        suppress_tokens=[1, 2],
        begin_suppress_tokens=None,
        bad_words_ids=[[3], [4, 5]],
        sequence_bias=[[[6, 7], -1.5]],
        forced_eos_token_id=257,
        exponential_decay_length_penalty=[5, 1.1],
        min_length=9,
    )
    assert record.left_out == {}
    assert record.rules == GenerationRules(
        no_repeat_ngram_size=2,
        repetition_penalty=1.1,
        suppress_tokens=(1, 2),
        bad_words_ids=((3,), (4, 5)),
        sequence_bias=(((6, 7), -1.5),),
        forced_eos_token_id=(257,),
        exponential_decay_length_penalty=(5, 1.1),
        min_length=9,
    )


def test_a_number_of_new_tokens_takes_the_place_of_a_length(tmp_path: Path) -> None:
    assert record_of(tmp_path, min_length=9, min_new_tokens=0).rules == NO_RULES
    record = record_of(tmp_path, min_length=9, min_new_tokens=3)
    assert record.rules == GenerationRules(min_new_tokens=3)


def test_a_checkpoint_that_asks_for_nothing_is_silent(tmp_path: Path) -> None:
    plain = {"eos_token_id": 257, "max_new_tokens": 40, "do_sample": False, "temperature": 0.2}
    record = record_of(tmp_path, **plain, repetition_penalty=1, top_k=50, num_beams=1)
    assert record == GenerationRecord(NO_RULES, {})
    assert record.sentences() == []


def test_what_is_not_applied_is_named(tmp_path: Path) -> None:
    record = record_of(
        tmp_path, do_sample=True, temperature=0.7, top_p=0.8, repetition_penalty=1.05, num_beams=4
    )
    assert record.left_out == {
        "num_beams": 4,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
    }
    applied, left_out = record.sentences()
    assert applied == "applied of generation_config.json: repetition_penalty 1.05"
    assert left_out == (
        "not applied of generation_config.json: num_beams 4, do_sample true, temperature 0.7,"
        " top_p 0.8; answers are greedy, for others give --temperature 0.7 --top-p 0.8"
    )
    assert record.sentences(sampled=True)[1] == "not applied of generation_config.json: num_beams 4"
    (only,) = record.sentences(rules=False)
    assert only.startswith(
        "not applied of generation_config.json: repetition_penalty 1.05, num_beams 4"
    )


def test_long_lists_are_counted(tmp_path: Path) -> None:
    record = record_of(tmp_path, suppress_tokens=list(range(50)))
    assert record.sentences()[0].endswith(": suppress_tokens of 50")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"no_repeat_ngram_size": "2"},
            r"generation_config\.json, no_repeat_ngram_size: expected int, got '2'; correct it",
        ),
        (
            {"bad_words_ids": [5]},
            r"generation_config\.json, bad_words_ids\[0\]: expected a list, got 5; correct it",
        ),
        (
            {"suppress_tokens": [1, 999]},
            r"generation_config\.json: suppress_tokens names token 999, and the model has 261",
        ),
        ({"bad_words_ids": [[1, -1]]}, r"bad_words_ids names token -1"),
        ({"sequence_bias": [[[300], 1.0]]}, r"sequence_bias names token 300"),
        ({"forced_eos_token_id": [261]}, r"forced_eos_token_id names token 261"),
        ({"max_new_tokens": -1}, r"is refused by transformers: .*max_new_tokens"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty: expected a number above 0, got 0\.0"),
        ({"repetition_penalty": -1.0}, r"repetition_penalty: expected a number above 0, got -1"),
        ({"repetition_penalty": float("nan")}, r"expected a number above 0, got nan; correct it"),
        ({"bad_words_ids": [[1], []]}, r"bad_words_ids\[1\]: expected ids of tokens, got an empty"),
        ({"sequence_bias": [[[], 1.0]]}, r"sequence_bias\[0\]: expected ids of tokens, got an em"),
        ({"sequence_bias": [[[1], 1e39]]}, r"sequence_bias\[0\]: expected a finite number, got 1e"),
        (
            {"exponential_decay_length_penalty": [1, float("inf")]},
            r"exponential_decay_length_penalty: expected a finite number, got inf; correct it",
        ),
        ({"guidance_scale": float("inf")}, r"cannot be taken along: it holds a number that is inf"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(
    content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(LvlmError, match=message) as raised:
        record_of(tmp_path, **content)
    assert "\n" not in str(raised.value)


def test_a_count_below_zero_is_off(tmp_path: Path) -> None:
    """As in transformers, which makes no processor of it; nothing is said to be applied."""
    counts = {"no_repeat_ngram_size": -1, "min_length": -1}
    assert record_of(tmp_path, **counts).rules == NO_RULES
    assert record_of(tmp_path, min_new_tokens=-2).rules == NO_RULES


def test_an_end_that_the_model_cannot_say_is_refused(tiny_llava: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_llava / "checkpoint" / "config.json", tmp_path)
    record_of(tmp_path, eos_token_id=[5, 10_000_000])
    with pytest.raises(
        LvlmError, match=r"eos_token_id names token 10000000, and the model has \d+"
    ):
        _ = Checkpoint.open(tmp_path).stop_ids


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(LvlmError, match=r"generation_config\.json cannot be read as JSON"):
        read_rules(tmp_path, VOCAB)


@pytest.mark.parametrize(
    ("generation", "top", "text"),
    [(5, 6, 7), ([5, 6], None, 7), (None, 6, 7), (None, None, 7)],
)
def test_answers_end_where_those_of_transformers_end(
    generation: Any, top: Any, text: Any, tiny_llava: Path, tmp_path: Path
) -> None:
    """generation_config.json first, config.json where there is none, its text model's last."""
    config = json.loads((tiny_llava / "checkpoint" / "config.json").read_text())
    config["text_config"]["eos_token_id"] = text
    if top is not None:
        config["eos_token_id"] = top
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    from transformers import AutoConfig

    model = LlavaForConditionalGeneration(AutoConfig.from_pretrained(tmp_path))
    model.adjust_generation_fn(
        None, False, False, tmp_path, None, False, None, True, None, "main", "", False
    )
    expected = model.generation_config.eos_token_id
    expected = (expected,) if isinstance(expected, int) else tuple(expected)
    assert Checkpoint.open(tmp_path).stop_ids == expected


def test_an_answer_under_rules_is_that_of_generate(tiny_llava: Path) -> None:
    """Of a picture: its tokens count and are compared as those of the prompt are."""
    bundle = Bundle.open(tiny_llava / "bundle")
    sample = synthetic_samples(bundle.manifest.layouts, 1, seed=3)[0]
    plain = Session.load(bundle, device="cpu")
    request = prepare_request(plain, sample)
    ids = [*request.runs[0], *[259] * 36, *request.runs[1]]
    rules = {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "suppress_tokens": [30, 31],
        "min_length": len(ids) + 20,
    }
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in rules.items()}
    record = GenerationRecord(GenerationRules(**fields), {})
    session = Session(bundle, plain.chain, plain.encoder, record)
    model = LlavaForConditionalGeneration.from_pretrained(tiny_llava / "checkpoint").eval()
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            pixel_values=torch.from_numpy(request.pixel_values),
            max_new_tokens=24,
            do_sample=False,
            **rules,
        )
    got = session.generate(sample.question, sample.images, 1.0, max_new_tokens=24).token_ids
    assert got == tuple(out[0, len(ids) :].tolist())
    argmax = session.generate(
        sample.question, sample.images, 1.0, max_new_tokens=24, sampling=ARGMAX
    ).token_ids
    before = plain.generate(sample.question, sample.images, 1.0, max_new_tokens=24).token_ids
    assert argmax == before != got


def test_a_bundle_of_an_earlier_build_has_no_rules(tiny_llava: Path) -> None:
    bundle = Bundle.open(tiny_llava / "bundle")
    assert FILE in bundle.manifest.files
    files = {name: ref for name, ref in bundle.manifest.files.items() if name != FILE}
    older = Bundle(bundle.directory, dataclasses.replace(bundle.manifest, files=files))
    assert read_generation(older) == GenerationRecord(NO_RULES, {})
