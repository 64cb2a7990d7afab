"""Weights as integers of few bits: against plain numpy, and in a bundle against PyTorch."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tiny
from helpers import Silent
from lvlm_export.bundle.build import build, check_parity
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.graphs.quantise import dequantise, pack_int4, quantise, quantised_weights
from lvlm_export.plan.plan import BuildOptions, make_plan, options_of
from lvlm_export.plan.targets import TARGETS
from lvlm_export.plan.weight_formats import (
    UNROUNDED,
    BuildPrecision,
    PartFormats,
    parse_precision,
)
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.graphs.gate import check_bundle
from lvlm_runtime.session import ARGMAX, Session


def rounded(row: NDArray[np.float32], largest: int) -> NDArray[np.float32]:
    """Weights that share a scale, as they come back: the rule in plain numpy, number by number."""
    scale = np.float32(max(abs(float(each)) for each in row)) / np.float32(largest)
    if scale == 0:
        return np.zeros_like(row)
    return np.array([np.rint(each / scale) * scale for each in row], np.float32)


@pytest.mark.parametrize(("name", "largest", "block"), [("int8", 127, 70), ("int4", 7, 32)])
def test_weights_come_back_as_numpy_says(name: str, largest: int, block: int) -> None:
    weight = np.random.default_rng(0).standard_normal((5, 70)).astype(np.float32)
    weight[2] = 0
    values, scales = quantise(torch.from_numpy(weight), name, torch.float32)
    expected = [
        np.concatenate([rounded(row[at : at + block], largest) for at in range(0, 70, block)])
        for row in weight
    ]
    assert int(values.abs().max()) <= largest
    np.testing.assert_allclose(dequantise(values, scales, name).numpy(), expected, rtol=1e-6)


def test_scales_are_rounded_to_the_activations_type_before_weights_are() -> None:
    weight = torch.tensor([[1000.1, 1.0, -3.0]])
    values, scales = quantise(weight, "int8", torch.float16)
    assert scales.dtype == torch.float16
    scale = np.float16(np.float32(1000.1) / 127)
    assert values.tolist() == [np.rint(weight[0].numpy() / np.float32(scale)).tolist()]


def test_a_long_table_is_rounded_in_pieces_as_if_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(10, 40, generator=torch.Generator().manual_seed(0))
    whole = quantise(weight, "int4", torch.float32)
    monkeypatch.setattr("lvlm_export.graphs.quantise.ROWS", 3)
    for one, other in zip(whole, quantise(weight, "int4", torch.float32), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(3, 4), (3, 5)])
def test_four_bits_are_packed_as_numpys_own_type_is_saved(shape: tuple[int, int]) -> None:
    from onnx import numpy_helper

    values = torch.randint(
        -8, 8, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(1)
    )
    saved = numpy_helper.from_array(values.numpy().astype(ml_dtypes.int4)).raw_data
    assert pack_int4(values).numpy().tobytes() == saved


@pytest.mark.parametrize(
    ("text", "activations", "weights"),
    [
        ("fp16", "fp16", UNROUNDED),
        ("int8", None, PartFormats("int8", "int8", "int8")),
        ("int4,fp16", "fp16", PartFormats("int8", "int4", "int8")),
        ("decoder=int4", None, PartFormats(decoder="int4")),
        ("int4,vision=int4", None, PartFormats("int4", "int4", "int8")),
    ],
)
def test_precisions_are_read(text: str, activations: str | None, weights: PartFormats) -> None:
    assert parse_precision(text) == BuildPrecision(activations, weights)


@pytest.mark.parametrize(
    "text", ["int2", "fp32,fp16", "tower=int8", "decoder=fp16", "", "int8,int4"]
)
def test_other_precisions_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is given twice or not known; give one of fp32, fp16"):
        parse_precision(text)


def test_a_head_of_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="rows of the token table are read one by one; take lm_"):
        parse_precision("lm_head=int4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "trt"}, "target trt in dialect decomposed takes opset 20; take .* int8$"),
        ({"dialect": "decomposed"}, "takes opset 20; take --precision int8 or --dialect opset24"),
        ({"precision": "bf16", "target": "rtx"}, "int4 and int8 weights go with fp16 or fp32"),
    ],
)
def test_what_does_not_take_them_is_refused_before_anything_is_built(
    changes: dict[str, str], message: str, tmp_path: Path
) -> None:
    weights = parse_precision("int4").weights
    checkpoint = Checkpoint.open(tiny.llava(tmp_path / "checkpoint"))
    with pytest.raises(UsageError, match=message):
        make_plan(checkpoint, BuildOptions((0.5,), weights=weights, **changes))  # type: ignore[arg-type]


# Every form in one bundle: blocks in the decoder, a scale per output in the tower, a tied table.
MIXED = "int4"


def build_at(directory: Path, family: str, precision: str, target: str = "cpu") -> Path:
    """The bundle of a tiny checkpoint, which passed the gate."""
    make = {"llava": tiny.llava, "onevision": tiny.onevision}[family]
    checkpoint = make(directory / "checkpoint")
    weights = parse_precision(precision).weights
    options = BuildOptions((0.5,), baseline=False, weights=weights, target=target)
    build(Checkpoint.open(checkpoint), "tiny", options, directory / "bundle", Silent(), force=True)
    return directory / "bundle"


def same_as_pytorch(bundle: Bundle, checkpoint: Checkpoint, weights: PartFormats) -> None:
    """The gate, against PyTorch with weights in some formats."""
    options = options_of(bundle.manifest)
    plan = make_plan(checkpoint, BuildOptions(options.ratios, baseline=False, weights=weights))
    check_parity(checkpoint, plan, bundle, 1, Silent())


def logits(session: Session) -> NDArray[np.float32]:
    """Of the first token of an answer about a grey picture."""
    from PIL import Image

    from lvlm_runtime.chain.recorder import Recorder

    seen: list[NDArray[np.float32]] = []

    def keep(name: str, value: object) -> None:
        if name == "lm_head":
            seen.append(session.chain.backend.fetch(value))

    picture = Image.new("RGB", (48, 48), (90, 140, 30))
    recorder = Recorder(on_stage=keep)
    session.generate("What?", [picture], max_new_tokens=1, sampling=ARGMAX, recorder=recorder)
    return seen[0]


def test_a_bundle_of_integers_says_what_pytorch_says_with_the_same_weights(tmp_path: Path) -> None:
    built = build_at(tmp_path, "llava", MIXED)
    bundle, checkpoint = Bundle.open(built), Checkpoint.open(tmp_path / "checkpoint")
    manifest = bundle.manifest
    assert manifest.quantised == {"vision": "int8", "decoder": "int4", "lm_head": "int8"}
    # The gate that it passed can fail: PyTorch with its own weights says something else.
    with pytest.raises(LvlmError, match="the exported chain is not the model"):
        same_as_pytorch(bundle, checkpoint, UNROUNDED)
    # Float weights that are left: norms, biases, positions, patches.
    model = checkpoint.skeleton(torch.float32, "eager")
    rounded = quantised_weights(model, checkpoint.family, parse_precision(MIXED).weights)
    kept = sum(p.numel() for n, p in model.named_parameters() if n not in rounded)
    floats = sum(ref.size_bytes for ref in manifest.weights.values() if ref.dtype == "float32")
    scales = 4 * sum(
        p.shape[0] * (-(-p.shape[1] // 32) if rounded[n] == "int4" else 1)
        for n, p in model.named_parameters()
        if n in rounded
    )
    assert floats <= 4 * kept + scales
    # ONNX Runtime multiplies with rounded activations where it is not asked for a comparison.
    exact, quick = (Session.load(bundle, device="cpu", exact=each) for each in (True, False))
    one, other = logits(exact), logits(quick)
    assert 0 < np.abs(one - other).max() < 0.05 * np.abs(one).max()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "onevision"])
@pytest.mark.parametrize("precision", ["int8", "int4,vision=int4", "decoder=int4", "vision=int4"])
def test_every_precision_passes_the_gate(family: str, precision: str, tmp_path: Path) -> None:
    bundle = Bundle.open(build_at(tmp_path, family, precision))
    assert bundle.manifest.quantised == parse_precision(precision).weights.named


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "precision"), [("rtx", "int4"), ("trt", "int8"), ("cuda", "int4")]
)
def test_every_target_passes_its_gates(target: str, precision: str, tmp_path: Path) -> None:
    bundle = Bundle.open(build_at(tmp_path, "llava", precision, target))
    gate = TARGETS[target].gate
    assert gate is None or check_bundle(bundle, gate) == []
    assert bundle.manifest.precision == "float16"
