"""The decomposed dialect: the same model in plain operators of opset 20, with views as caches."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForImageTextToText

import tiny
from command_line import typed
from families import CASES, Case, build_case, compare
from helpers import build_tiny, tiny_options
from lvlm_export.bundle.weights import WeightStore
from lvlm_export.check.parity import synthetic_samples, verify
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.demo import CHECKPOINT
from lvlm_export.graphs.attention import NAME as ATTENTION
from lvlm_export.graphs.export import export_graph, full_names
from lvlm_export.graphs.jobs import lm_head_jobs, reducer_job
from lvlm_export.graphs.passes import rewrites
from lvlm_export.graphs.passes.lower_opset import OPSET
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_export.plan.targets import TARGETS
from lvlm_export.reduction import METHODS
from lvlm_runtime.backends import open_backend
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.chain.chain import Chain
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.graphs.gate import check_bundle, check_graph
from lvlm_runtime.session import Session

QUICK = ("llava-clip-llama",)
PROMPT, ANSWER = [5, 80, 33, 7, 120, 9], [11, 200, 3, 64, 90]


def dialect_cases() -> list[object]:
    """Every case of test_families, in the dialect that it does not have there."""
    return [
        pytest.param(case, id=case.name, marks=() if case.name in QUICK else pytest.mark.slow)
        for case in CASES
    ]


@pytest.mark.parametrize("case", dialect_cases())
def test_decomposed_chain_equals_pytorch(case: Case, tmp_path: Path) -> None:
    options = {**case.options, "dialect": "decomposed"}
    lowered = dataclasses.replace(case, options=options)
    report = compare(lowered, build_case(lowered, tmp_path))
    assert {row.ratio for row in report.stages} == {0.5, 0.33, 1.0}
    assert max(row.error for row in report.stages) <= 1e-5
    assert [row for row in report.answers if not row.passed] == []
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert (manifest.dialect, manifest.kv_layout) == ("decomposed", "sequence_major")
    check_old_operators(tmp_path / "bundle")


def check_old_operators(bundle: Path) -> None:
    """Only opset 20: as the model declares, by ONNX's checker, and node by node."""
    for path in bundle.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
        onnx.checker.check_model(str(path), full_check=True)
        for node in model.graph.node:
            schema = onnx.defs.get_schema(node.op_type, OPSET)
            assert {attribute.name for attribute in node.attribute} <= set(schema.attributes)
    for target in ("trt-10.3", "trt-10.13", "trt-10.16", "trt-11", "rtx"):
        assert check_bundle(Bundle.open(bundle), target) == []


@pytest.mark.parametrize("dialect", ["decomposed", pytest.param("opset24", marks=pytest.mark.slow)])
def test_prefill_and_every_step_give_the_logits_of_pytorch(tmp_path: Path, dialect: str) -> None:
    """Grouped-query attention with biases, and the head in two parts."""
    path = tiny.llava(tmp_path / "checkpoint", tower="siglip", text="qwen2")
    built = build_tiny(path, tmp_path / "bundle", 1.0, dialect=dialect, lm_head_splits=2)
    assert decode_error(built.directory, path) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["decomposed", "opset24"])
def test_half_precision_on_the_demo_model(tmp_path: Path, dialect: str) -> None:
    """Its weights are float16 numbers, so PyTorch in float32 is exact; pictures, then text alone.

    The logits are compared: between the sites rounding swaps ranks of tokens that are merged, which
    moves the one merged row by more (0.7 % of the largest value here, 0.13 % of the whole state).
    """
    options = {"target": "trt" if dialect == "decomposed" else "cuda", "precision": "fp16"}
    built = build_tiny(CHECKPOINT, tmp_path / "bundle", 0.33, **options)
    checkpoint = Checkpoint.open(CHECKPOINT)
    plan = make_plan(checkpoint, tiny_options(0.33, **options))
    session = Session.open(built.directory, device="cpu", threads=1)
    samples = synthetic_samples(plan.shape.layouts, 1, seed=3)
    report = verify(session, checkpoint, plan, samples, 8, lambda _step: None)
    logits = {row.ratio: row.error for row in report.stages if row.stage == "lm_head"}
    print(f"{dialect}: {logits}")
    assert set(logits) == {0.33, 1.0}
    assert max(logits.values()) <= 1e-3
    assert [row for row in report.answers if not row.passed] == []
    assert decode_error(built.directory, CHECKPOINT) <= 1e-3


def decode_error(bundle: Path, checkpoint: Path) -> float:
    """Worst relative error (Euclidean norm) of the logits after a prompt and after every token."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([PROMPT + ANSWER])).logits[0].numpy()
    chain = Chain(Bundle.open(bundle), open_backend("onnxruntime", "cpu", 1))
    state, logits = chain.prefill([PROMPT], None, None, len(ANSWER), Recorder())
    got = [logits] + [chain.step(state, token, Recorder()) for token in ANSWER]
    wanted = expected[len(PROMPT) - 1 :]
    errors = np.linalg.norm(np.stack(got) - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    print(f"decode: {errors.max():.2g}")
    return float(errors.max())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "illava" else pytest.mark.slow)
        for name in METHODS
        if name != "none"
    ],
)
def test_reducers_of_every_method_pass_the_gates(
    tmp_path: Path, clip_checkpoint: Checkpoint, name: str
) -> None:
    """In both dialects, where their parsers stand: 10.3 for the old operators, RTX for both."""
    plan = make_plan(clip_checkpoint, BuildOptions((0.5,), baseline=False, method=name))
    [budget] = plan.budgets
    [part] = budget.layouts
    counts = [*budget.vision, *([part.projected] if part.projected else []), *part.decoder]
    assert counts
    gates = {"opset24": ("rtx",), "decomposed": ("trt-10.3", "trt-10.13", "rtx")}
    for count in counts:
        job = reducer_job(plan, count, torch.float16)
        for dialect, targets in gates.items():
            changes = rewrites("trt", dialect, job.reads_cache)
            path = tmp_path / job.file
            export_graph(job.module, job.arguments, job.signature, path, {}, None, changes)
            assert [check_graph(path, target) for target in targets] == [[]] * len(targets)


@pytest.fixture(scope="module")
def clip_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny LLaVA with a CLS token, which every method fits."""
    return Checkpoint.open(tiny.llava(tmp_path_factory.mktemp("clip") / "checkpoint"))


def test_targets_speak_what_their_parsers_take(tmp_path: Path) -> None:
    """A device names its target; the other dialect is refused at build, by the node."""
    assert {name: (each.dialect, each.gate) for name, each in TARGETS.items()} == {
        "cpu": ("opset24", None),
        "cuda": ("opset24", None),
        "rtx": ("opset24", "rtx"),
        "trt": ("decomposed", "trt-10.3"),
    }
    path = tiny.llava(tmp_path / "checkpoint")
    words = ["build", "--ratio", "1.0", "--no-verify", "--target", "orin_nano_8gb", "--model", path]
    result = typed(*words, "--dialect", "opset24", "-o", tmp_path / "refused")
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: TensorRT 10.3 (JetPack 6) does not take vision.0.onnx, graph:")
    assert line.endswith("choose another --target, --dialect, --precision or --method")
    assert not (tmp_path / "refused").exists()
    result = typed(*words, "--lm-head-splits", "3", "-o", tmp_path / "nano")
    assert result.exit_code == 0, result.stderr
    manifest = Bundle.open(tmp_path / "nano").manifest
    assert (manifest.target, manifest.dialect, manifest.precision) == (
        "trt",
        "decomposed",
        "float16",
    )
    assert manifest.lm_head == ("lm_head.0.onnx", "lm_head.1.onnx", "lm_head.2.onnx")
    assert typed("check", tmp_path / "nano", "--target", "trt-10.3").stdout.startswith("PASS")
    assert "lm_head in 3 parts" in typed("inspect", tmp_path / "nano").stdout


def test_targets_and_splits_that_do_not_exist(tmp_path: Path) -> None:
    result = typed("build", "--ratio", "1.0", "--target", "jetson")
    assert result.exit_code == 2
    assert "unknown target 'jetson'; known: cpu, cuda, rtx, trt, agx_orin_32gb" in result.stderr
    result = typed("build", "--ratio", "1.0", "--lm-head-splits", "100000", "-o", tmp_path / "x")
    assert result.exit_code == 2
    assert "--lm-head-splits 100000 is outside 1 to " in result.stderr


def test_a_split_head_stores_no_weight_twice(tmp_path: Path, clip_checkpoint: Checkpoint) -> None:
    model = clip_checkpoint.skeleton(torch.float32, ATTENTION)
    parts, shape = (
        clip_checkpoint.family.parts(model),
        make_plan(clip_checkpoint, BuildOptions((1.0,))).shape,
    )
    store = WeightStore(tmp_path, clip_checkpoint)
    stored, words = [], []
    for splits in (1, 4):
        for job in lm_head_jobs(parts, shape, splits, torch.float32):
            path, names = tmp_path / job.file, full_names(model)
            export_graph(job.module, job.arguments, job.signature, path, names, store)
            [logits] = onnx.load(path, load_external_data=False).graph.output
            words.append(logits.type.tensor_type.shape.dim[1].dim_value)
        stored.append(dict(store.refs))
    assert stored[0] == stored[1]
    assert words == [261, 65, 65, 65, 66]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "gate"), [("trt", "trt-10.3"), ("rtx", "rtx")])
def test_bfloat16_is_checked_on_the_same_graphs_in_float32(
    tmp_path: Path, target: str, gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime cannot run it on a CPU, and the build says what it compared instead."""
    # The engines of rtx are built after the bundle; they have tests of their own.
    monkeypatch.setattr("lvlm_export.cli.commands.engines.build_beside", lambda _bundle: None)
    words = ["build", "--ratio", "0.5", "--target", target, "--precision", "bf16"]
    path = tiny.llava(tmp_path / "checkpoint", dtype=torch.bfloat16)
    result = typed(*words, "--model", path, "-o", tmp_path / "bundle")
    assert result.exit_code == 0, result.stderr
    assert "parity  of the same graphs in float32" in result.stdout
    assert {each.name for each in tmp_path.iterdir()} == {"checkpoint", "bundle"}, (
        "no stand-in left"
    )
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.precision == "bfloat16"
    kinds = {ref.dtype for ref in bundle.manifest.weights.values()}
    assert "bfloat16" in kinds
    assert "float16" not in kinds
    assert str(bundle.embedding_table().dtype) == "bfloat16"
    assert check_bundle(bundle, gate) == []
    for graph in bundle.directory.glob("*.onnx"):
        onnx.checker.check_model(str(graph), full_check=True)
    line = typed("run", tmp_path / "bundle", "Hello?").stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert "is bfloat16, for which ONNX Runtime has no kernels here; run it with --backend" in line


def test_bfloat16_needs_tensorrt() -> None:
    result = typed("build", "--ratio", "1.0", "--target", "cuda", "--precision", "bf16")
    assert result.exit_code == 2
    assert "--precision bf16 runs in TensorRT (rtx, trt) and not on target cuda" in result.stderr
