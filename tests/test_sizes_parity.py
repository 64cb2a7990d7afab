"""Token sizes that the decoder counts, from the tower to every step, against PyTorch with the same bias."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from helpers import build_tiny
from lvlm_export.check.parity import synthetic_samples, verify
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_runtime.session import Session

# ONNX Runtime's own operator on a CPU, the standard one, plain products; scores in the decoder that
# count sizes too; packed tiles and several pictures.
CASES = [
    ("tome+fastv", "llava", {}),
    ("tome", "onevision", {"image_size": (100, 140)}),
    ("tome+fastv", "llava", {"target": "cuda", "precision": "fp32", "dialect": "opset24"}),
    ("tome+fastv", "llava", {"dialect": "decomposed"}),
    ("tome+sparsevlm", "onevision", {"image_size": (100, 140), "dialect": "decomposed"}),
]


@pytest.mark.slow  # ``test_methods`` has the first way by default
@pytest.mark.parametrize(("method", "family", "options"), CASES)
def test_the_chain_counts_sizes_as_pytorch(
    method: str, family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    options = {"method": method, **options}
    path = getattr(tiny, family)(tmp_path / family)
    result = build_tiny(path, tmp_path / "bundle", 0.33, **options)
    assert result.manifest.sized
    checkpoint = Checkpoint.open(path)
    plan = make_plan(checkpoint, BuildOptions((0.33,), **options))
    session = Session.open(result.directory, device="cpu")
    samples = synthetic_samples(plan.shape.layouts, 1, seed=5)
    report = verify(session, checkpoint, plan, samples, 8, lambda _step: None)
    assert max(row.error for row in report.stages) < 2e-4
    assert [row for row in report.answers if not row.passed] == []
