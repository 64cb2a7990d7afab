"""Every family against transformers, on tiny random checkpoints with real structure.

At 1.0 the chain must answer as ``transformers.generate`` does; at 0.5 and 0.33 as the reference
with the same reducer inside the HF model; hidden states must agree at every cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from helpers import build_tiny
from lvlm_export.checkpoint import Checkpoint
from lvlm_export.parity import ParityReport, synthetic_samples, verify
from lvlm_export.plan import BuildOptions, make_plan
from lvlm_runtime.errors import UsageError
from lvlm_runtime.session import Session

RATIOS = (0.5, 0.33)


@dataclass(frozen=True)
class Case:
    """A checkpoint to write and how to build it."""

    name: str
    checkpoint: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        make = tiny.onevision if self.name.startswith("onevision") else tiny.llava
        return make(directory / self.name, **self.checkpoint)


CASES = [
    Case("llava-clip-llama"),
    Case(
        "llava-siglip-qwen2-bf16-shards",
        {"tower": "siglip", "text": "qwen2", "dtype": torch.bfloat16, "max_shard_size": "100KB"},
        {"method": "random"},
    ),
    Case("llava-clip-mistral-tied", {"text": "mistral", "tied": True}),
    # Not ascending: the projector was trained with this order.
    Case("llava-clip-three-layers", {"feature_layer": [-2, 1, 3]}, {"method": "fastv"}),
    Case("onevision-2x3-tiles", {}, {"image_size": (100, 140)}),
    Case("onevision-shrunk", {"aspect": "anyres_max_1"}, {"image_size": (100, 140)}),
]


def compare(case: Case, directory: Path) -> ParityReport:
    path = case.write(directory)
    result = build_tiny(path, directory / "bundle", *RATIOS, **case.options)
    checkpoint = Checkpoint.open(path)
    plan = make_plan(checkpoint, BuildOptions(RATIOS, **case.options))
    session = Session.open(result.directory, device="cpu")
    samples = synthetic_samples(plan.shape.layouts, 2, seed=5)
    return verify(session, checkpoint, plan, samples, 12, lambda _step: None)


def test_reducing_in_a_tower_whose_layers_stand_side_by_side_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.onevision(tmp_path / "model", feature_layer=[2, -1]))
    with pytest.raises(UsageError, match="illava acts at vision@1, before the model's multi-layer"):
        make_plan(checkpoint, BuildOptions(RATIOS))
    assert make_plan(checkpoint, BuildOptions(RATIOS, method="fastv")).shape.vision.levels == 2


def cases() -> list[object]:
    """All of them; shrinking a large picture's grid takes the way of the other tiles, and longer."""
    marks = {"onevision-shrunk": pytest.mark.slow}
    return [pytest.param(each, id=each.name, marks=marks.get(each.name, ())) for each in CASES]


@pytest.mark.parametrize("case", cases())
def test_chain_equals_pytorch(case: Case, tmp_path: Path) -> None:
    report = compare(case, tmp_path)
    assert {row.ratio for row in report.stages} == {0.5, 0.33, 1.0}
    assert max(row.error for row in report.stages) < 2e-4
    wrong = [row for row in report.answers if not row.passed]
    assert wrong == []
    official = [row for row in report.answers if row.source == "transformers.generate"]
    # Two samples per layout; OneVision has a layout for one picture and one for several.
    assert len(official) == (4 if case.name.startswith("onevision") else 2)
    assert all(len(row.got) == 12 or row.got[-1] == 257 for row in report.answers)
