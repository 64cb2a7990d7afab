"""The scaling law: published optimum, monotonicity, equal compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lvlm_profiles.cost.request import text_weight_elements, weight_elements
from lvlm_profiles.cost.scaling import (
    ALPHA,
    BETA,
    Entry,
    best_tokens,
    cost_flops,
    error_ratio,
    relative_error,
    tokens_at_equal_cost,
)
from lvlm_profiles.errors import LvlmError, UsageError
from lvlm_profiles.shapes.presets import DIRECTORY, load_preset, preset_names, read_preset

SMALL, LARGE = Entry("small", 0.5, 729), Entry("large", 7.0, 36)


@pytest.mark.parametrize(("question", "visual"), [(0, 1), (25, 6), (50, 12), (100, 24), (200, 48)])
def test_the_best_token_count_at_fixed_compute(question: int, visual: int) -> None:
    """METHODS §4: V* = Q beta / (alpha - beta), at least 1."""
    found = best_tokens(question)
    assert found is not None
    assert round(found) == visual


def test_for_reading_text_there_is_no_optimum() -> None:
    assert best_tokens(50, alpha=0.028, beta=0.039) is None


def test_the_optimum_is_one() -> None:
    """At equal compute, more and fewer tokens are both worse."""
    question = 100

    def error(visual: float) -> float:
        billions = 1e12 / cost_flops(1.0, question, visual)
        return error_ratio(billions, visual, 1.0, 1.0)

    best = best_tokens(question)
    assert best is not None
    assert error(best) < min(error(best * 1.1), error(best / 1.1))


def test_error_falls_five_times_faster_with_size_than_with_tokens() -> None:
    """The authors' README; exponents 0.077 and 0.015."""
    assert pytest.approx(5.1, abs=0.05) == ALPHA / BETA
    twice_size = relative_error(Entry("", 2.0, 100), Entry("", 1.0, 100))
    twice_tokens = relative_error(Entry("", 1.0, 200), Entry("", 1.0, 100))
    assert twice_size == pytest.approx(2**-0.077)
    assert twice_tokens == pytest.approx(2**-0.015)


def test_a_large_model_with_few_tokens_errs_less() -> None:
    assert relative_error(SMALL, SMALL) == 1.0
    assert relative_error(LARGE, SMALL) == pytest.approx((14) ** -0.077 * (36 / 729) ** -0.015)
    assert relative_error(LARGE, SMALL) < 1


def test_tokens_at_equal_compute() -> None:
    base = Entry("base", 1.0, 576)
    assert tokens_at_equal_cost(2.0, base, 24) == (24 + 576) / 2 - 24
    equal = cost_flops(2.0, 24, tokens_at_equal_cost(2.0, base, 24))
    assert equal == pytest.approx(cost_flops(1.0, 24, 576))
    # A question of 64 tokens alone costs a 7B model more than 0.5B takes for everything.
    assert tokens_at_equal_cost(7.0, Entry("small", 0.5, 100), 64) < 1


def test_what_the_law_was_not_fitted_on() -> None:
    assert LARGE.inside
    assert not SMALL.inside
    assert not Entry("13B", 13.0, 36).inside


@pytest.mark.parametrize(
    ("name", "language", "whole"),
    [
        ("gemma3-4b", 3.88, 4.3),
        ("internvl3-1b", 0.63, 0.938),
        ("internvl3-2b", 1.777, 2.09),
        ("internvl3-8b", 7.61, 7.94),
        ("llava-1.5-7b", 6.74, 7.05),
        ("llava-1.5-13b", 13.02, 13.3),
        ("llava-next-mistral-7b", 7.242, 7.56),
        ("llava-next-vicuna-7b", 6.74, 7.06),
        ("llava-onevision-0.5b", 0.494, 0.89),
        ("llava-onevision-7b", 7.62, 8.03),
        ("paligemma-3b-224", 2.508, 2.92),
        ("paligemma-3b-448", 2.508, 2.92),
        ("qwen2-vl-2b", 1.544, 2.21),
        ("qwen2.5-vl-3b", 3.086, 3.75),
        ("qwen2.5-vl-7b", 7.616, 8.29),
        ("qwen3-vl-2b", 1.720, 2.13),
        ("qwen3-vl-4b", 4.022, 4.44),
        ("qwen3-vl-8b", 8.19, 8.77),
    ],
)
def test_presets_have_the_published_sizes(name: str, language: float, whole: float) -> None:
    preset = load_preset(name)
    assert text_weight_elements(preset.dims.text) / 1e9 == pytest.approx(language, rel=0.005)
    assert weight_elements(preset.dims) / 1e9 == pytest.approx(whole, rel=0.01)
    assert preset.source
    assert preset.checkpoint.startswith(("OpenGVLab/", "Qwen/", "google/", "llava-hf/"))


def test_unknown_and_wrong_presets(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown shape 'x'; known: gemma3-4b, .*llava-1.5-7b"):
        load_preset("x")
    content = json.loads((DIRECTORY / f"{preset_names()[0]}.json").read_text(encoding="utf-8"))
    path = tmp_path / "odd.json"
    remedy = "; mend the shapes, or install lvlm-export again$"
    for wrong, message in (
        (content | {"colour": "red"}, "odd.json: expected exactly the known .*unknown 'colour'"),
        (content | {"context_length": "many"}, "odd.json, context_length: expected int, got 'ma"),
        ([], r"odd.json: expected an object, got \[\]"),
    ):
        path.write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(LvlmError, match=f"{message}.*{remedy}"):
            read_preset(path)
