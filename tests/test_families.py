"""Every family against transformers, on tiny random checkpoints with real structure.

At 1.0 the chain must answer as ``transformers.generate`` does; at 0.5 and 0.33 as the reference
with the same reducer inside the HF model; hidden states must agree at every cut.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
from families import CASES, RATIOS, Case, build_case, compare, shared_case
from helpers import build_tiny
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.engines.build import EngineSettings, build_engines
from lvlm_runtime.engines.limits import Limits
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.graphs.gate import check_bundle
from lvlm_runtime.remembered import PictureMemory
from lvlm_runtime.session import Session
from lvlm_runtime.tensorrt.library import RTX_COMPUTE_CAPABILITIES


def test_reducing_in_a_tower_whose_layers_stand_side_by_side_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.onevision(tmp_path / "model", feature_layer=[2, -1]))
    with pytest.raises(UsageError, match="local acts at vision@0, before the model's multi-layer"):
        make_plan(checkpoint, BuildOptions(RATIOS))
    assert make_plan(checkpoint, BuildOptions(RATIOS, method="fastv")).shape.vision.levels == 2


def cases() -> list[object]:
    """All of them; those that take the code of another but for a few lines are slow."""
    slow = ("qwen2_vl", "onevision-shrunk", "llava-clip-mistral-tied", "llava-clip-three-layers")
    slow += ("qwen3_vl-sites-by-hand", "qwen3_vl-sized", "llava_next-2x3-tiles", "paligemma-gemma")
    slow += ("gemma3-windows",)
    return [
        pytest.param(each, id=each.name, marks=pytest.mark.slow if each.name in slow else ())
        for each in CASES
    ]


@pytest.mark.parametrize("case", cases())
def test_chain_equals_pytorch(case: Case, shared: Path) -> None:
    report = compare(case, shared_case(case.name, shared))
    assert {row.ratio for row in report.stages} == {0.5, 0.33, 1.0}
    assert max(row.error for row in report.stages) < 2e-4
    wrong = [row for row in report.answers if not row.passed]
    assert wrong == []
    official = [row for row in report.answers if row.source == "transformers.generate"]
    # Two samples per layout; OneVision has a layout for one picture and one for several.
    assert len(official) == (4 if case.name.startswith("onevision") else 2)
    assert all(len(row.got) == 12 or row.got[-1] == 257 for row in report.answers)


# One of each family that no other test builds engines of, which llava and onevision have.
DEPLOYED = [
    each
    for each in CASES
    if each.name.startswith(("gemma3", "internvl", "llava_next", "paligemma"))
    or each.name in ("qwen2_5_vl", "qwen3_vl")
]


@pytest.mark.slow
@pytest.mark.parametrize("case", DEPLOYED, ids=[each.name for each in DEPLOYED])
def test_the_decomposed_dialect_equals_pytorch(case: Case, tmp_path: Path) -> None:
    options = {**case.options, "target": "trt", "dialect": "decomposed", "precision": "fp32"}
    decomposed = Case(case.name, case.checkpoint, options)
    report = compare(decomposed, build_case(decomposed, tmp_path))
    assert max(row.error for row in report.stages) < 2e-4
    assert [row for row in report.answers if not row.passed] == []


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["opset24", "decomposed"])
@pytest.mark.parametrize("case", DEPLOYED, ids=[each.name for each in DEPLOYED])
def test_every_graph_becomes_an_engine(case: Case, dialect: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    options = {**case.options, "target": "rtx", "dialect": dialect}
    path = case.write(tmp_path)
    bundle = Bundle.open(build_tiny(path, tmp_path / "bundle", 0.33, **options).directory)
    assert check_bundle(bundle, "rtx") == []
    settings = EngineSettings("rtx", Limits(64, 32, 2), RTX_COMPUTE_CAPABILITIES[:1])
    record = build_engines(bundle, settings).record
    assert set(record.engines) == {path.name for path in bundle.directory.glob("*.onnx")}


@pytest.mark.slow
def test_a_memory_is_left_alone_where_nothing_can_be_gone_on_from(shared: Path) -> None:
    """Rows of Gemma 3 see others behind them: every question is answered from nothing."""
    session = Session.open(shared_case("gemma3-windows", shared).bundle, device="cpu")
    picture = np.full((40, 60, 3), 99, np.uint8)
    fresh = session.generate("What?", [picture], max_new_tokens=4)
    with pytest.raises(LvlmError, match="do not know gemma3's attention yet"):
        session.remember(picture)
    assert session.memory is None
    session.memory = PictureMemory()
    for _ in range(2):
        answer = session.generate("What?", [picture], max_new_tokens=4)
        assert (answer.token_ids, answer.reused_tokens) == (fresh.token_ids, 0)
    (batched,) = session.generate_batch(
        [{"prompt": "What?", "images": [picture]}], max_new_tokens=4
    )
    assert batched.token_ids == fresh.token_ids
