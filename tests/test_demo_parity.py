"""The demo model through the chain, token for token, on 200 questions about unseen scenes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from helpers import IN_BOTH
from lvlm_export.check.chain_run import ParitySample
from lvlm_export.check.parity import prepare_request
from lvlm_export.check.reference import Reference
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.demo import CHECKPOINT
from lvlm_export.demo.questions import SceneSample, evaluation_set
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_runtime.session import Session

QUESTIONS = 200
ANSWER_TOKENS = 40


@pytest.fixture(scope="module")
def session(demo_bundle: Path) -> Session:
    return Session.open(demo_bundle, device="cpu")


@pytest.fixture(scope="module")
def samples() -> list[SceneSample]:
    return evaluation_set(QUESTIONS, seed=11)


def test_unreduced_answers_equal_transformers_generate(
    session: Session, samples: list[SceneSample]
) -> None:
    """The whole of transformers' own way: its processor, its template, its generate."""
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    model = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    different = []
    for sample in samples:
        content = [
            {"type": "image", "image": sample.image},
            {"type": "text", "text": sample.question},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=ANSWER_TOKENS)
        expected = tuple(out[0, inputs["input_ids"].shape[1] :].tolist())
        got = session.generate(sample.question, [sample.image], 1.0, max_new_tokens=ANSWER_TOKENS)
        if got.token_ids != expected:
            different.append((sample.question, expected, got.token_ids))
    assert different == []


@pytest.mark.parametrize("ratio", [pytest.param(0.5, marks=pytest.mark.slow), 0.33])
def test_reduced_answers_equal_the_pytorch_reference(
    session: Session, samples: list[SceneSample], ratio: float
) -> None:
    checkpoint = Checkpoint.open(CHECKPOINT)
    plan = make_plan(checkpoint, BuildOptions((ratio,), method=IN_BOTH))
    reference = Reference(CHECKPOINT, checkpoint.family, plan)
    different = []
    for sample in samples:
        request = prepare_request(session, ParitySample((sample.image,), sample.question))
        expected, _ = reference.generate(
            request, plan.budgets[0], checkpoint.stop_ids, ANSWER_TOKENS
        )
        got = session.generate(sample.question, [sample.image], ratio, max_new_tokens=ANSWER_TOKENS)
        if got.token_ids != expected:
            different.append((sample.question, expected, got.token_ids))
    assert different == []
