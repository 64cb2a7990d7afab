"""``lvlm-export choose``: VTW's layer and PruMerge's share on sample questions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from command_line import error_line, typed
from lvlm_export.check.parity import request_of, synthetic_samples
from lvlm_export.check.reference import Reference
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_export.study.choosing import measure_outlier_shares, measure_withdrawals, withdrawn_logits
from lvlm_runtime.prompt.encoder import PromptEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llava(tmp_path_factory.mktemp("llava") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three questions about three pictures."""
    directory = tmp_path_factory.mktemp("data")
    lines = []
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(directory / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "question": "What?", "answer": "-"}))
    path = directory / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl"])
def test_withdrawing_is_what_a_build_with_that_ratio_does(
    folder: Path, kind: str, tmp_path: Path
) -> None:
    """Text alone after the layer, instead of the reducer of a build, gives the same logits.

    Layers of Qwen3-VL add features to the visual tokens as long as these are there.
    """
    if kind != "llava":
        folder = tiny.qwen_vl(tmp_path / "model", kind)
    checkpoint = Checkpoint.open(folder)
    ratios = (0.25, 0.5, 0.75)
    plan = make_plan(checkpoint, BuildOptions(ratios, method="vtw"))
    reference = Reference(checkpoint.directory, checkpoint.family, plan)
    shape, encoder = plan.shape, PromptEncoder.open(folder)
    sample = synthetic_samples(shape.layouts, 1)[0]
    request = request_of(sample, encoder, shape.layouts, shape.preprocess, shape.image_token_id)
    full, withdrawn = withdrawn_logits(reference, request)
    by_ratio = {1.0: full, **{layer / 4: logits for layer, logits in withdrawn.items()}}
    assert set(by_ratio) == {1.0, *ratios}
    for budget in plan.budgets:
        _, trace = reference.generate(request, budget, checkpoint.stop_ids, 1)
        np.testing.assert_allclose(by_ratio[budget.ratio], trace.hidden["lm_head"][0], atol=1e-5)


def test_every_layer_is_tried_on_every_sample(folder: Path) -> None:
    checkpoint, seen = Checkpoint.open(folder), []
    samples = synthetic_samples(make_plan(checkpoint, BuildOptions((0.5,))).shape.layouts, 2)
    rows = measure_withdrawals(checkpoint, samples, None, seen.append)
    assert [(row.layer, row.ratio) for row in rows] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert all(row.divergence > 0 for row in rows)
    assert seen == ["sample 0", "sample 1"]


def test_vtw_as_a_user_types_it(folder: Path, data: Path) -> None:
    command = ("choose", "--model", folder, "--method", "vtw", "--data", data)
    output = typed(*command, "--divergence", "100").stdout
    passing = [line.split() for line in output.splitlines() if "first that passes" in line]
    assert [row[:2] for row in passing] == [["1", "0.25"]]
    assert output.splitlines()[-1] == (
        f"next    lvlm-export build --model {folder} --method vtw --ratio 0.25"
    )
    result = json.loads(typed(*command, "--divergence", "100", "--limit", "2", "--json").stdout)
    assert (result["ratio"], result["samples"]) == (0.25, 2)
    assert [row["layer"] for row in result["layers"]] == [1, 2, 3]
    refused = error_line(typed(*command, "--divergence", "1e-12"), 1)
    assert "no layer reaches a divergence of 1e-12; the best is layer" in refused


def test_prumerge_as_a_user_types_it(folder: Path, data: Path) -> None:
    command = ("choose", "--model", folder, "--method", "prumerge", "--data", data)
    lines = typed(*command).stdout.splitlines()
    assert "over 3 pictures" in lines[0]
    result = json.loads(typed(*command, "--json").stdout)
    assert lines[-1].endswith(f"--method prumerge --ratio {result['ratio']:.4g}")
    assert result["ratio"] == pytest.approx(sum(result["shares"]) / 3)
    # 36 patches, and the token that is appended counts as one.
    assert all(round(share * 36, 6).is_integer() and share >= 1 / 36 for share in result["shares"])


def test_scores_are_those_of_the_class_token(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    samples = synthetic_samples(make_plan(checkpoint, BuildOptions((0.5,))).shape.layouts, 2)
    once = measure_outlier_shares(checkpoint, samples, None, lambda _step: None)
    again = [
        measure_outlier_shares(checkpoint, [each], None, lambda _step: None)[0] for each in samples
    ]
    assert once == again
