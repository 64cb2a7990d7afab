"""The gate's samples through transformers' own processor: what agrees, what differs, what cannot be."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from helpers import made_once
from lvlm_export.check.parity import synthetic_samples
from lvlm_export.check.processor import EQUAL, check_processor
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.checkpoint.processing import prompt_files
from lvlm_export.demo import CHECKPOINT
from lvlm_export.plan.plan import BuildOptions, Plan, make_plan
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.golden import NOT_COMPARED
from lvlm_runtime.prompt.encoder import PromptEncoder

LLAVA = {"patch_size": 8, "num_additional_image_tokens": 1}
ONEVISION = {"num_image_tokens": 36, "vision_aspect_ratio": "anyres_max_9"}
MEAN = (0.1, 0.1, 0.1)


@pytest.fixture
def llava(tiny_llava: Path, tmp_path: Path) -> Path:
    """The tiny LLaVA with a processor_config.json, as transformers 4.45 and later save it."""
    directory = Path(shutil.copytree(tiny_llava / "checkpoint", tmp_path / "model"))
    settings(directory, **LLAVA, vision_feature_select_strategy="default")
    return directory


@pytest.fixture(scope="module")
def onevision(shared: Path) -> Path:
    with made_once(shared / "onevision_processor") as part:
        if part is not None:
            tiny.onevision(part)
            settings(part, **ONEVISION, vision_feature_select_strategy="full")
    return shared / "onevision_processor"


def settings(directory: Path, **content: Any) -> None:
    (directory / "processor_config.json").write_text(json.dumps(content))


def outcome(
    directory: Path, encoder: PromptEncoder | None = None, n_samples: int = 1, **options: Any
) -> str:
    checkpoint = Checkpoint.open(directory)
    plan = make_plan(checkpoint, BuildOptions((1.0,), **options))
    return compare(checkpoint, plan, encoder, n_samples)


def compare(
    checkpoint: Checkpoint, plan: Plan, encoder: PromptEncoder | None = None, n_samples: int = 1
) -> str:
    own = PromptEncoder.read(prompt_files(checkpoint.directory), checkpoint.directory)
    return check_processor(
        checkpoint, plan, encoder or own, synthetic_samples(plan.shape.layouts, n_samples)
    )


def test_tokens_and_pixels_are_the_processors(llava: Path) -> None:
    assert outcome(llava) == outcome(CHECKPOINT) == EQUAL


@pytest.mark.parametrize("image_size", [None, (100, 140), (140, 48)])
def test_tiles_are_the_processors(onevision: Path, image_size: tuple[int, int] | None) -> None:
    """Of one picture and of several; without torchvision, which only videos need."""
    assert outcome(onevision, image_size=image_size) == EQUAL


def test_a_language_models_template_is_compared_as_a_text(llava: Path) -> None:
    source = "{% for m in messages %}{{ m['role'] ~ (m['content'] | trim) }}{% endfor %}"
    (llava / "chat_template.jinja").write_text(source)
    assert outcome(llava) == EQUAL


def test_a_trained_projector_has_a_count_of_its_own(tiny_quecc: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_quecc / "checkpoint", tmp_path / "model"))
    settings(directory, **LLAVA, vision_feature_select_strategy="default")
    assert outcome(directory) == EQUAL


def test_pixels_that_differ_name_the_file_and_the_setting(llava: Path) -> None:
    checkpoint = Checkpoint.open(llava)
    plan = make_plan(checkpoint, BuildOptions((1.0,)))
    other = replace(plan.shape.preprocess, mean=MEAN)
    plan = replace(plan, shape=replace(plan.shape, preprocess=other))
    message = (
        r"pixels differ by .* \(limit 1e-05\) from those of transformers' CLIPImageProcessorPil"
        r" \(mean\); look at {}$"
    )
    with pytest.raises(LvlmError, match=message.format(r"preprocessor_config\.json")):
        compare(checkpoint, plan)
    own = json.loads((llava / "preprocessor_config.json").read_text())
    settings(llava, **LLAVA, image_processor=own)
    file = r"image_processor in processor_config\.json"
    with pytest.raises(LvlmError, match=message.format(file)):
        compare(checkpoint, plan)


def test_pictures_of_another_size_are_refused(llava: Path) -> None:
    checkpoint = Checkpoint.open(llava)
    plan = make_plan(checkpoint, BuildOptions((1.0,)))
    other = replace(plan.shape.preprocess, center_crop=(40, 48))
    plan = replace(plan, shape=replace(plan.shape, preprocess=other))
    with pytest.raises(
        LvlmError, match=r"pixels have shape \(1, 3, 40, 48\) and not \(1, 3, 48, 4"
    ):
        compare(checkpoint, plan)


def test_a_prompt_that_differs_is_refused(llava: Path) -> None:
    files = prompt_files(llava)
    source = files["chat_template.jinja"].replace(b"ASSISTANT", b"Assistant")
    encoder = PromptEncoder.read({**files, "chat_template.jinja": source}, llava)
    with pytest.raises(LvlmError, match=r"token \d+ is \[\d+\] and not \[\d+\]; look at the toke"):
        outcome(llava, encoder)
    longer = files["chat_template.jinja"] + b"!"
    encoder = PromptEncoder.read({**files, "chat_template.jinja": longer}, llava)
    with pytest.raises(LvlmError, match=r"token \d+ is \[\d+\] and not there; look at the token"):
        outcome(llava, encoder)


@pytest.mark.parametrize(
    ("changes", "count"),
    [({"patch_size": 16}, 9), ({"num_additional_image_tokens": 0}, 35)],
)
def test_a_count_that_differs_names_the_settings(
    changes: dict[str, Any], count: int, llava: Path
) -> None:
    settings(llava, **{**LLAVA, **changes}, vision_feature_select_strategy="default")
    with pytest.raises(
        LvlmError, match=rf"makes {count} image tokens where the model gives 36; .*\(patch_size "
    ):
        outcome(llava)


def test_a_count_without_a_setting_is_said(llava: Path) -> None:
    """Transformers 4.45 and 4.46 wrote no num_additional_image_tokens; today's default is 0."""
    settings(llava, patch_size=8, vision_feature_select_strategy="default")
    assert outcome(llava) == (
        "transformers' processor does not count this checkpoint's image tokens:"
        " processor_config.json does not set num_additional_image_tokens"
    )


def test_the_first_sample_that_is_not_equal_counts(
    llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = iter(["a reason", EQUAL])
    monkeypatch.setattr("lvlm_export.check.processor._compare", lambda *_: next(results))
    assert outcome(llava, n_samples=2) == "a reason"
    assert outcome(llava, n_samples=0) == NOT_COMPARED


def test_what_cannot_be_compared_is_said(llava: Path) -> None:
    settings(llava, vision_feature_select_strategy="default")
    assert outcome(llava) == (
        "transformers' processor does not count this checkpoint's image tokens:"
        " processor_config.json does not set patch_size"
    )
    settings(llava, **LLAVA, processor_class="OwnProcessor")
    assert outcome(llava) == (
        "transformers' processor could not be made: transformers has no class OwnProcessor"
    )
