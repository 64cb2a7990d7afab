"""Which engines a bundle needs and with which profiles; no TensorRT in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from command_line import typed
from lvlm_profiles.devices.device import load_device
from lvlm_runtime.bundle.bundle import Bundle, read_manifest
from lvlm_runtime.engines.limits import Limits, capacities_of, check_limits, default_limits
from lvlm_runtime.engines.memory import check_memory
from lvlm_runtime.engines.plan import DECODE, DECODE_MAX, EngineSpec, plan_engines
from lvlm_runtime.errors import LvlmError, UsageError

LIMITS = Limits(text_tokens=100, answer_tokens=40, images=2)


@pytest.fixture(scope="module")
def specs(demo_bundle: Path) -> dict[str, EngineSpec]:
    plan = plan_engines(Bundle.open(demo_bundle), LIMITS)
    return {spec.graph: spec for spec in plan}


def test_every_graph_has_an_engine(specs: dict[str, EngineSpec], demo_bundle: Path) -> None:
    files = read_manifest(demo_bundle).files
    assert sorted(specs) == sorted(name for name in files if name.endswith(".onnx"))


def test_every_budget_has_a_profile_at_its_exact_count(
    specs: dict[str, EngineSpec], demo_bundle: Path
) -> None:
    manifest = read_manifest(demo_bundle)
    for index, stage in enumerate(manifest.vision[1:], 1):
        found = {}
        for profile in specs[stage.graph].profiles:
            low, best, high = profile.shapes["hidden"]
            assert low[1] == best[1] == high[1]
            assert (low[0], best[0], high[0]) == (1, 1, 2)
            found |= dict.fromkeys(profile.names, best[1])
        wanted = {
            f"{budget.ratio:g} image": (
                budget.vision[index - 1].tokens_out if budget.vision else manifest.vision_tokens
            )
            for budget in manifest.budgets
        }
        assert found == wanted


def test_decoders_have_prefill_and_one_small_decode_range(
    specs: dict[str, EngineSpec], demo_bundle: Path
) -> None:
    manifest = read_manifest(demo_bundle)
    rows = capacities_of(manifest, LIMITS)
    for stage in manifest.decoder:
        spec = specs[stage.graph]
        # Decomposed, the filled rows of a cache are an input that grows, and no size is fixed.
        fixed = {rows[stage.name]} if manifest.dialect == "opset24" else set()
        assert {size for axes in spec.fixed.values() for size in axes.values()} == fixed
        assert all(set(axes) == {2} for axes in spec.fixed.values())
        *prefill, decode = spec.profiles
        assert decode.names == (DECODE,)
        assert [shape[1] for shape in decode.shapes["hidden"]] == [1, 1, DECODE_MAX]
        assert len(prefill) == len(manifest.budgets)
        for profile in prefill:
            low, best, high = (shape[1] for shape in profile.shapes["hidden"])
            assert low == 1 < best < high <= rows[stage.name]
            assert [shape[1] for shape in profile.shapes["position_ids"]] == [low, best, high]
    first, full = manifest.decoder[0], manifest.vision_tokens
    longest = [p for p in specs[first.graph].profiles if "1 image" in p.names]
    assert longest[0].shapes["hidden"][1][1] == full + 64
    assert rows[first.name] == 2 * full + LIMITS.text_tokens + LIMITS.answer_tokens


def test_the_head_has_one_profile_for_prefill_and_decode(specs: dict[str, EngineSpec]) -> None:
    [profile] = specs["lm_head.onnx"].profiles
    assert [shape[1] for shape in profile.shapes["hidden"][:2]] == [1, 1]


def test_equal_budgets_share_a_profile(specs: dict[str, EngineSpec]) -> None:
    [profile] = specs["vision.0.onnx"].profiles
    assert profile.names == ("0.33 image", "0.5 image", "1 image")


def test_weights_are_counted(specs: dict[str, EngineSpec], demo_bundle: Path) -> None:
    total = sum(spec.weights_bytes for spec in specs.values())
    whole = read_manifest(demo_bundle).files["weights.bin"].size_bytes
    assert 0.8 * whole < total < 1.3 * whole


def test_requests_that_do_not_fit_are_refused(demo_bundle: Path) -> None:
    manifest = read_manifest(demo_bundle)
    check_limits(manifest, default_limits(manifest))
    context = manifest.text.context_length
    with pytest.raises(UsageError, match=r"--text-tokens \d+ fits"):
        check_limits(manifest, Limits(context, 10, 1))
    with pytest.raises(UsageError, match="fewer --images or --answer-tokens"):
        check_limits(manifest, Limits(10, 10, 60))
    with pytest.raises(UsageError, match="at least 1"):
        check_limits(manifest, Limits(10, 0, 1))


def test_memory_is_counted_before_anything_is_built(demo_bundle: Path) -> None:
    bundle, nano = Bundle.open(demo_bundle), load_device("orin_nano_8gb")
    manifest = bundle.manifest
    need = check_memory(bundle, LIMITS, nano)
    text, rows = manifest.text, capacities_of(manifest, LIMITS)
    values = sum(
        2
        * (stage.last_layer - stage.first_layer)
        * text.kv_heads
        * text.head_dim
        * rows[stage.name]
        for stage in manifest.decoder
    )
    assert need.kv_cache == values * np.dtype(manifest.precision).itemsize
    assert 0 < need.activations < 10**9
    tiny = dataclasses.replace(nano, memory_gb=dataclasses.replace(nano.memory_gb, value=2.05))
    with pytest.raises(LvlmError, match=r"Orin Nano 8 GB has 0\.05 GB"):
        check_memory(bundle, LIMITS, tiny)


def test_devices_without_engines_and_unknown_ones(demo_bundle: Path) -> None:
    for device, message in (("x86_cpu", "no engines for it"), ("nano", "known: agx_orin_32gb")):
        result = typed("engines", demo_bundle, "--device", device)
        assert result.exit_code == 2
        assert message in result.stderr
