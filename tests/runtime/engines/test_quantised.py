"""TensorRT-RTX keeps integers as they are stored, once for all budgets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import tiny
from helpers import build_tiny
from lvlm_export.plan.weight_formats import parse_precision
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.engines.build import EngineSettings, build_engines
from lvlm_runtime.engines.builder import build_engine
from lvlm_runtime.engines.limits import Limits
from lvlm_runtime.engines.plan import plan_engines
from lvlm_runtime.errors import UsageError
from lvlm_runtime.graphs.gate import check_bundle
from lvlm_runtime.tensorrt.library import RTX_COMPUTE_CAPABILITIES, open_library

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: make setup brings it")

LIMITS = Limits(64, 32, 1)
# What an engine holds beside its weights: kernels, per profile.
KERNELS_PER_PROFILE = 4_000_000
# Bytes of a decoder's weights for one in float16, and the compute capabilities that take them.
SHARES = {
    "int8": (0.51, ("sm75", *RTX_COMPUTE_CAPABILITIES)),
    "int4": (0.29, RTX_COMPUTE_CAPABILITIES),
}


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers whose weights are more than an engine's kernels, and heads that have one."""
    usual = tiny.vision_config

    def heads_of_16(*words: object, **options: object) -> object:
        config = usual(*words, **options)  # type: ignore[arg-type]
        config.num_attention_heads = 2
        return config

    monkeypatch.setattr(tiny, "vision_config", heads_of_16)
    monkeypatch.setattr(tiny, "TEXT", {**tiny.TEXT, "hidden_size": 768, "intermediate_size": 3072})


@pytest.mark.slow
@pytest.mark.parametrize("precision", SHARES)
def test_integers_lie_in_an_engine_once(precision: str, wide: None, tmp_path: Path) -> None:
    share, capabilities = SHARES[precision]
    checkpoint = tiny.llava(tmp_path / "checkpoint")
    weights = parse_precision(f"{precision},vision={precision}").weights
    ratios = (0.5, 0.33, 0.25)
    built = build_tiny(checkpoint, tmp_path / "bundle", *ratios, target="rtx", weights=weights)
    bundle = Bundle.open(built.directory)
    assert check_bundle(bundle, "rtx") == []
    specs = {spec.graph: spec for spec in plan_engines(bundle, LIMITS)}
    names = [stage.graph for stage in (*bundle.manifest.vision, *bundle.manifest.decoder)]
    for name in (*names, *bundle.manifest.lm_head):
        spec = specs[name]
        engine = build_engine(open_library("rtx"), spec, bundle, capabilities)
        most = 1.02 * spec.weights_bytes + KERNELS_PER_PROFILE * len(spec.profiles)
        assert engine.nbytes <= most, f"{name}: {engine.nbytes} for {spec.weights_bytes}"
    decoder = sum(specs[stage.graph].weights_bytes for stage in bundle.manifest.decoder)
    # Four square maps, the two of keys and values half as wide, and three to the inner width.
    elements = 4 * (3 * 768**2 + 3 * 768 * 3072)
    assert decoder <= share * 2 * elements


def test_turing_multiplies_with_no_int4(demo_bundle: Path) -> None:
    opened = Bundle.open(demo_bundle)
    manifest = dataclasses.replace(
        opened.manifest, precision="float16", quantised={"decoder": "int4"}
    )
    settings = EngineSettings("rtx", LIMITS, ("sm75",))
    with pytest.raises(UsageError, match=r"no products with int4 weights for Turing \(sm75\)"):
        build_engines(Bundle(demo_bundle, manifest), settings)
