"""Weights once: budgets cost kilobytes, every tensor is stored once."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import onnx
import pytest

from helpers import Silent, build_tiny
from lvlm_export.bundle.build import change_ratios
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.demo import CHECKPOINT
from lvlm_runtime.bundle.bundle import read_manifest


def size_bytes(bundle: Path) -> int:
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def bundles(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo uncut, at 1.0 alone, and the bundle of three ratios that tests share with one more."""
    folder = tmp_path_factory.mktemp("sizes")
    one = build_tiny(CHECKPOINT, folder / "one", 1.0).directory
    four = Path(shutil.copytree(demo_bundle, folder / "four"))
    change_ratios(Checkpoint.open(CHECKPOINT), four, (0.2,), (), Silent(), 0)
    return one, four


def test_four_ratios_are_at_most_two_percent_larger_than_one(bundles: tuple[Path, Path]) -> None:
    one, four = map(size_bytes, bundles)
    assert four <= 1.02 * one


def test_every_tensor_is_stored_once(bundles: tuple[Path, Path]) -> None:
    manifest = read_manifest(bundles[1])
    refs = list(manifest.weights.values())
    assert len({ref.sha256 for ref in refs}) == len(refs)
    spans = sorted((ref.offset, ref.offset + ref.size_bytes) for ref in refs)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_reducers_hold_no_weights(bundles: tuple[Path, Path]) -> None:
    reducers = sorted(bundles[1].glob("reduce.*.onnx"))
    assert len(reducers) == 3 * 5  # ratios below 1, sites
    for path in reducers:
        assert path.stat().st_size < 16_384
        model = onnx.load(path, load_external_data=False)
        assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_no_reducer_has_a_data_dependent_op(bundles: tuple[Path, Path]) -> None:
    refused = {
        "NonZero",
        "Loop",
        "If",
        "Scan",
        "ScatterElements",
        "ScatterND",
        "Unique",
        "Compress",
    }
    for path in bundles[1].glob("reduce.*.onnx"):
        found = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        assert not found & refused, path.name
