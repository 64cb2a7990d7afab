"""Many trials at once answer what the reference answers for each alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import tiny
from lvlm_export.check.chain_run import ParitySample
from lvlm_export.check.parity import request_of, synthetic_samples
from lvlm_export.check.reference import Reference
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.fit import geometry_of
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_export.study.evaluation import Question
from lvlm_export.tune.asking import Asker, AskOptions, PictureQuestions
from lvlm_export.tune.space import ModelFit, Trial, TrialPlan

TOKENS = 4
FULL = (
    Trial("none", 1.0),
    *(
        Trial(name, 0.5)
        for name in ("tome", "local", "anchors", "fastv", "sparsevlm", "divprune", "vtw")
    ),
    *(
        Trial(name, 0.5)
        for name in ("illava", "downsample+dart", "local+pyramiddrop", "tome+fastv")
    ),
    Trial("illava", 0.5, share=0.85),
    Trial("tome", 0.5, sites=("vision@2", "vision@3")),
)
# What a CLS token, tiles and a trained projector change: prefix, packer, what a question is asked of.
FEW = tuple(Trial(name, 0.5) for name in ("local", "visionzip", "tome+fastv", "illava"))
TILED = tuple(Trial(name, 0.5) for name in ("local", "tome+fastv", "uniform", "sparsevlm"))
# Windows, groups, three positions; and features that the first two decoder layers add, a site among them.
PLACED = tuple(Trial(name, 0.5) for name in ("local", "tome+fastv", "divprune"))
ADDED = (*(Trial(name, 0.5) for name in ("illava", "cdpruner+fastv")),)
ADDED += (Trial("fastv", 0.5, sites=("decoder@1",)),)
AFTER = tuple(Trial(name, 0.5) for name in ("fastv", "pyramiddrop"))
MODELS: dict[str, tuple[Callable[[Path], Path], tuple[Trial, ...]]] = {
    "siglip": (partial(tiny.llava, tower="siglip"), FULL),
    "clip": (tiny.llava, (Trial("none", 1.0), *FEW)),
    "tiles": (tiny.onevision, (Trial("none", 1.0), *TILED)),
    "qwen2_5_vl": (tiny.qwen_vl, (Trial("none", 1.0), *PLACED)),
    "qwen3_vl": (partial(tiny.qwen_vl, kind="qwen3_vl"), (Trial("none", 1.0), *ADDED)),
    "internvl": (tiny.internvl, (Trial("none", 1.0), *FEW[1:3])),
    "quecc": (partial(tiny.projected, kind="quecc", cell=3), (Trial("none", 1.0), *AFTER)),
}


def reference_answers(
    checkpoint: Checkpoint, plans: list[TrialPlan], samples: list[ParitySample]
) -> list[list[str]]:
    """Greedy answers of the reference, one trial and sample at a time."""
    encoder, reference, texts = checkpoint.encoder, None, []
    for trial in (plan.trial for plan in plans):
        options = BuildOptions((trial.ratio,), False, trial.method, placement=trial.placement)
        made = make_plan(checkpoint, options)
        reference = reference or Reference(checkpoint.directory, checkpoint.family, made)
        reference.plan, row = made, []
        spec, image_token = made.shape.preprocess, made.shape.image_token_id
        for sample in samples:
            request = request_of(sample, encoder, made.shape.layouts, spec, image_token)
            ids, _ = reference.generate(request, made.budgets[0], checkpoint.stop_ids, TOKENS)
            decoder = encoder.decoder()
            kept = [token for token in ids if token not in checkpoint.stop_ids]
            row.append("".join([*(decoder.push(token) for token in kept), decoder.flush()]).strip())
        texts.append(row)
    return texts


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    """Each trial's own answers, asked of all trials as the expected ones: right where they agree."""
    make, trials = MODELS[name]
    checkpoint = Checkpoint.open(make(tmp_path / "model"))
    shape = checkpoint.shape(None)
    fit = ModelFit(geometry_of(shape), shape.vision.prefix, shape.packed, shape.text.hidden_size)
    plans = [fit.plan(trial) for trial in trials]
    pictures = [sample.images[0] for sample in synthetic_samples(shape.layouts, 2)]
    samples = [
        ParitySample((picture,), question)
        for picture in pictures
        for question in ("What?", "Is it a longer question?")
    ]
    answers = reference_answers(checkpoint, plans, samples)
    plain = [[text.strip().rstrip(".").strip().casefold() for text in row] for row in answers]
    differing = 0
    # The drafts are right for all to begin with, or only for what shares little with most.
    for number in (0, len(plans) // 2):
        asked = [
            Question(f"q:{n}", Path(), sample.question, answers[number][n] or "-", "k", False)
            for n, sample in enumerate(samples)
        ]
        groups = [
            PictureQuestions(picture, tuple(asked[2 * n : 2 * n + 2]))
            for n, picture in enumerate(pictures)
        ]
        outcome = Asker(checkpoint, AskOptions(TOKENS, None, 0)).ask(plans, groups)
        expected = tuple(
            tuple(row[n] == plain[number][n] for n in range(len(samples))) for row in plain
        )
        assert outcome.right == expected
        assert outcome.effort.done > 0
        differing += sum(not right for row in expected for right in row)
    assert differing >= len(plans) // 2
