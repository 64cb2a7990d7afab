"""Trained projectors in the whole chain against PyTorch, and the question that QueCC reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from command_line import typed
from helpers import build_tiny
from lvlm_export.check.parity import synthetic_samples, verify
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_runtime.bundle.bundle import Bundle, read_manifest
from lvlm_runtime.chain.text_query import TextQuery
from lvlm_runtime.errors import UsageError
from lvlm_runtime.graphs.gate import check_bundle
from lvlm_runtime.session import Session

KINDS = ("quecc", "tokenpacker")
# The bundle that other tests share.
SHARED = ("quecc", 3, "clip", "fastv")
CASES: list[Any] = [
    SHARED,
    pytest.param("tokenpacker", 2, "siglip", "divprune", marks=pytest.mark.slow),
]
SLOW = [
    pytest.param(kind, cell, "clip", "fastv", marks=pytest.mark.slow)
    for kind in KINDS
    for cell in (12, 6, 4, 3, 2, 1)
    if (kind, cell) != SHARED[:2]
]


@pytest.mark.parametrize(("kind", "cell", "tower", "method"), [*CASES, *SLOW])
def test_the_chain_equals_pytorch(
    kind: str, cell: int, tower: str, method: str, tmp_path: Path, tiny_quecc: Path
) -> None:
    tokens = (12 // cell) ** 2
    ratios = (1.0,) if tokens == 1 else (0.5, 1.0)
    path, bundle = tiny_quecc / "checkpoint", tiny_quecc / "bundle"
    if (kind, cell, tower, method) != SHARED:
        path = tiny.projected(tmp_path / "checkpoint", kind, cell, tower)
        bundle = build_tiny(path, tmp_path / "bundle", *ratios, method=method).directory
    manifest = read_manifest(bundle)
    assert manifest.projector is not None
    assert (manifest.projector.tokens, manifest.projector.reads_text) == (tokens, kind == "quecc")
    assert {part.tokens_full for each in manifest.budgets for part in each.layouts} == {tokens}
    checkpoint = Checkpoint.open(path)
    plan = make_plan(checkpoint, BuildOptions(ratios, method=method))
    session = Session.open(bundle, device="cpu")
    samples = synthetic_samples(plan.shape.layouts, 2, seed=5)
    report = verify(session, checkpoint, plan, samples, 6, lambda _step: None)
    assert max(row.error for row in report.stages) < 2e-4
    assert [row for row in report.answers if not row.passed] == []
    assert "transformers.generate" in {row.source for row in report.answers}
    stages = {row.stage for row in report.stages}
    assert "projector" in stages
    assert ("query" in stages) == (kind == "quecc")
    for parser in ("trt-10.16", "rtx"):
        violations = check_bundle(Bundle.open(bundle), parser)
        assert [each for each in violations if each.graph == "projector.onnx"] == []
    assert "vision.0 → projector → " in typed("inspect", bundle).stdout
    if kind == "quecc":
        check_questions(session, samples[0].images[0])


def check_questions(session: Session, image: Any) -> None:
    """The text pass runs once per question, and the question changes the visual tokens."""
    seen: list[int] = []
    compute = session.chain.vision.text_query.compute
    session.chain.vision.text_query = TextQuery(
        lambda ids: (seen.append(len(ids)), compute(ids))[1]
    )
    for question in ("Which colour?", "Which colour?", "How many?", "Which colour?"):
        session.generate(question, [image], max_new_tokens=2)
    assert seen == [len("Which colour?"), len("How many?")]
    ids = session.encoder.encode("Which colour?", 1)
    with pytest.raises(UsageError, match="this bundle's projector reads the question and none was"):
        session.generate_ids(ids, [image], max_new_tokens=2)
    answer = session.generate_ids(ids, [image], max_new_tokens=2, query_ids=[70, 71])
    assert len(answer.token_ids) <= 2
    # Without a picture nothing needs the question.
    assert session.generate("Which colour?", max_new_tokens=2).visual_tokens == ()


def test_the_least_recently_asked_question_is_forgotten() -> None:
    seen: list[tuple[int, ...]] = []

    def compute(ids: Any) -> Any:
        seen.append(tuple(ids))
        return torch.zeros(1, 1, 2).numpy()

    ask = TextQuery(compute, kept=2)
    for ids in ([1], [2], [1], [3], [1], [2]):
        ask(ids)
    assert seen == [(1,), (2,), (3,), (2,)]
