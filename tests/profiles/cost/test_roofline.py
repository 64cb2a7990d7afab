"""Time from shapes: rooflines by hand, published latencies, and the fit to measurements."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest

from lvlm_profiles.cost.request import (
    Amount,
    Cut,
    ModelDims,
    TextDims,
    TokenPath,
    VisionDims,
    by_graph,
    decode_works,
    prefill_works,
    total,
)
from lvlm_profiles.cost.roofline import (
    KINDS,
    PUBLISHED,
    Rates,
    RatesError,
    Shares,
    device_roofline_ms,
    estimate,
    rates_of,
    roofline_ms,
)
from lvlm_profiles.devices.device import load_device
from lvlm_profiles.errors import LvlmError
from lvlm_profiles.planner.calibration import calibrate

NANO, ORIN, CPU = map(load_device, ("orin_nano_8gb", "agx_orin_64gb", "x86_cpu"))
DIMS = ModelDims(
    VisionDims(layers=6, width=256, mlp=1024, heads=4, patch=14, tokens=196, prefix=0),
    ((256, 512), (512, 512)),
    TextDims(8, 512, 1376, True, 8, 2, 64, 32000, False),
)
CUTS = (Cut("vision", 2, 196, 98), Cut("decoder", 3, 98, 49))
PATHS = {
    1.0: TokenPath("illava", 1, 1, 20, 9, 196, False, ()),
    0.25: TokenPath("illava", 1, 1, 20, 9, 98, False, CUTS),
}


def test_the_roofline_is_the_longer_of_arithmetic_and_traffic() -> None:
    rates = Rates(flops_per_s=1e12, bytes_per_s=1e11)
    assert roofline_ms(Amount(flops=10**9, weights=10), "fp16", rates) == pytest.approx(1.0)
    assert roofline_ms(Amount(flops=10, weights=10**8), "fp16", rates) == pytest.approx(2.0)
    assert roofline_ms(Amount(flops=10, weights=10**8), "int8", rates) == pytest.approx(1.0)


def test_rates_come_from_the_device_profile() -> None:
    assert rates_of(NANO, "fp16") == Rates(10e12, 68e9)
    assert rates_of(NANO, "int4") == Rates(10e12, 68e9)
    assert rates_of(NANO, "fp32") == Rates(1.28e12, 68e9)
    with pytest.raises(
        RatesError, match=r"DGX Spark .*: no fp16_tflops in the device profile \(not"
    ):
        rates_of(load_device("dgx_spark"), "fp16")


def test_the_roofline_of_a_device() -> None:
    amount = Amount(flops=10**12)
    assert device_roofline_ms(amount, "float16", NANO) == pytest.approx(100.0)
    assert device_roofline_ms(amount, "float32", CPU) is None


@pytest.mark.parametrize(
    ("device", "vision_ms", "prefill_ms", "tokens_per_s"),
    [("agx_orin_64gb", 39.3, 123.7, 52.4), ("orin_nx_16gb", 83.7, 244.6, 31.2)],
)
def test_the_shares_are_at_or_below_what_published_latencies_reach(
    device: str, vision_ms: float, prefill_ms: float, tokens_per_s: float
) -> None:
    """TensorRT Edge-LLM 0.9, Qwen3-VL-4B, 4-bit weights, 265 visual of 292 tokens (shared PEERS).

    Its tower has 24 layers of 1024 over 1060 patches in fp16, its text model is Qwen3-4B.
    """
    dims = ModelDims(
        VisionDims(24, 1024, 4096, 16, 16, 1060, 0),
        ((4096, 4096), (4096, 2560)),
        TextDims(36, 2560, 9728, True, 32, 8, 128, 151936, True),
    )
    path = TokenPath("none", 1, 1, 27, 100, 265, True, ())
    rates = rates_of(load_device(device), "int4")
    graphs = by_graph(prefill_works(dims, path))
    vision, prefill = (
        sum(
            1e3 * amount.flops / rates.flops_per_s
            for (of, _), amount in graphs.items()
            if of == phase
        )
        for phase in ("vision", "prefill")
    )
    decode = roofline_ms(total(decode_works(dims, path, 50)), "int4", rates)
    reached = (vision / vision_ms, prefill / prefill_ms, decode * tokens_per_s / 1e3)
    for share, kind in zip(reached, ("vision", "prefill", "decode"), strict=True):
        assert PUBLISHED.by_kind[kind] - 0.006 <= share <= PUBLISHED.by_kind[kind] + 0.21


def test_an_estimate_is_the_sum_of_its_stages() -> None:
    rates, shares = rates_of(ORIN, "fp16"), Shares(dict.fromkeys(KINDS, 0.5), "half")
    found = estimate(DIMS, PATHS[0.25], "fp16", rates, shares)
    names = [stage.graph for stage in found.first_token]
    assert names == [
        *("vision.0", "vision@2", "vision.1", "embedding", "assemble"),
        *("decoder.0", "decoder@3", "decoder.1", "lm_head"),
    ]
    assert all(stage.ms == pytest.approx(2 * stage.roofline_ms) for stage in found.first_token)
    assert found.ttft_ms == pytest.approx(found.phase_ms("vision") + found.phase_ms("prefill"))
    middle = total(decode_works(DIMS, PATHS[0.25], 3)).size_bytes("fp16")
    assert found.tpot_ms == pytest.approx(2e3 * middle / rates.bytes_per_s, rel=1e-6)
    whole = estimate(DIMS, PATHS[1.0], "fp16", rates, shares)
    assert found.phase_ms("prefill") < whole.phase_ms("prefill")


def report(execution: str = "cpu", precision: str = "float32", slower: float = 1.0) -> Any:
    """What calibration reads of a report: stages at 0.5 of 1 TFLOP/s and 0.25 of 100 GB/s."""
    rates = Rates(1e12, 1e11)
    shares = Shares({**dict.fromkeys(KINDS, 0.5), "decode": 0.25, "lm_head": 0.25}, "made")
    budgets = []
    for ratio, path in PATHS.items():
        times = estimate(DIMS, path, precision, rates, shares)
        stages = [
            SimpleNamespace(
                name=stage.graph,
                phase=stage.phase,
                summary=SimpleNamespace(median=slower * stage.ms),
            )
            for stage in (*times.first_token, *times.further_token)
        ]
        extra = SimpleNamespace(name="preprocess", phase="preprocess", summary=stages[0].summary)
        as_json = {**asdict(path), "cuts": [asdict(cut) for cut in path.cuts]}
        budgets.append(SimpleNamespace(ratio=ratio, path=as_json, stages=(extra, *stages)))
    return SimpleNamespace(
        created="2026-11-21T12:00:00",
        model=SimpleNamespace(
            name="tiny",
            precision=precision,
            dims={**asdict(DIMS), "projector": [[256, 512], [512, 512]]},
        ),
        machine=SimpleNamespace(
            execution=execution, board=None, accelerator=None, processor="Some CPU"
        ),
        budgets=tuple(budgets),
    )


def test_a_calibrated_plan_repeats_what_was_measured() -> None:
    measured = report()
    found = calibrate(measured, DIMS, CPU)
    assert found.source == "tiny on Some CPU, 2026-11-21"
    assert found.fit.error < 0.01
    for budget, path in zip(measured.budgets, PATHS.values(), strict=True):
        rates = found.speed.at(CPU, "fp32")
        times = estimate(DIMS, path, "fp32", rates, found.speed.shares)
        heavy = {stage.name: stage.summary.median for stage in budget.stages if "." in stage.name}
        for stage in times.first_token:
            if stage.graph in heavy and stage.phase == "vision":
                assert stage.ms == pytest.approx(heavy[stage.graph], rel=0.02)
    with pytest.raises(RatesError, match="no published rates, and calibrated at fp32 only"):
        found.speed.at(CPU, "fp16")


def test_shares_of_a_device_with_published_rates_hold_at_other_precisions() -> None:
    found = calibrate(report("cuda", "float16"), DIMS, ORIN)
    assert found.speed.at(ORIN, "int4") == rates_of(ORIN, "int4")
    assert "measured: tiny on" in found.speed.shares.source


def test_twice_as_slow_is_half_the_share() -> None:
    fast, slow = (calibrate(report("cuda", "float16", by), DIMS, ORIN) for by in (1.0, 2.0))
    for kind in ("vision", "prefill", "decode"):
        ratio = fast.fit.shares.by_kind[kind] / slow.fit.shares.by_kind[kind]
        assert ratio == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("change", "device", "message"),
    [
        (
            lambda dims: replace(dims, text=replace(dims.text, layers=9)),
            CPU,
            "of another model, tiny: text.layers is 8 there and 9 here; profile a bundle of this",
        ),
        (
            lambda dims: replace(dims, projector=((256, 512),)),
            CPU,
            r"projector is \[\[256, 512\], \[512, 512\]\] there and \[\[256, 512\]\] here",
        ),
        (
            lambda dims: dims,
            ORIN,
            r"measured on the CPU \(Some CPU\) and Jetson AGX Orin 64 GB is another kind of device",
        ),
    ],
)
def test_a_report_of_something_else_is_refused(change: Any, device: Any, message: str) -> None:
    with pytest.raises(LvlmError, match=message):
        calibrate(report(), change(DIMS), device)


def test_a_report_without_shapes_is_refused() -> None:
    measured = report()
    measured.model.dims = None
    with pytest.raises(LvlmError, match=r"the report has no shapes: .* profile it again"):
        calibrate(measured, DIMS, CPU)


def test_a_report_with_damaged_shapes_is_refused() -> None:
    measured = report()
    measured.budgets[0].path["tiles"] = "two"
    with pytest.raises(
        LvlmError,
        match=r"the report's path at ratio 1, tiles: expected int, got 'two'; write it again with",
    ):
        calibrate(measured, DIMS, CPU)
