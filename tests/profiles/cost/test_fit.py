"""Fitting shares of the roofline: known answers, least squares by hand, a real measurement."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lvlm_profiles.cost.fit import Measured, best_seen, fit_shares
from lvlm_profiles.cost.request import Amount, Cut, TokenPath, by_graph, prefill_works
from lvlm_profiles.cost.roofline import PUBLISHED, Rates, roofline_ms
from lvlm_profiles.errors import LvlmError
from lvlm_profiles.shapes.presets import load_preset


def test_the_fit_finds_the_shares_that_made_the_times() -> None:
    rates = Rates(1e12, 1e11)
    truth = {"vision": 0.6, "prefill": 0.4, "decode": 0.7}
    stages = [
        Measured(kind, f"{kind} {size}", amount, roofline_ms(amount, "fp16", rates) / share)
        for kind, share in truth.items()
        for size in (1, 3)
        for amount in [Amount(flops=size * 10**10, weights=size * 10**7)]
    ]
    fit = fit_shares(stages, "fp16", rates, "made up", PUBLISHED)
    assert {kind: fit.shares.by_kind[kind] for kind in truth} == pytest.approx(truth)
    # A kind that was not measured takes its neighbour's share, or the published one.
    assert fit.shares.by_kind["lm_head"] == pytest.approx(0.7)
    assert fit.shares.by_kind["reducer"] == PUBLISHED.by_kind["reducer"]
    assert fit.error == pytest.approx(0.0, abs=1e-9)


def test_the_fit_is_least_squares_and_says_its_error() -> None:
    """Two equal stages at 1 and 3 ms: x minimises (1-x)² + 3 (1-x/3)², so x = 2/(4/3)."""
    rates, amount = Rates(1e12, 1e11), Amount(flops=10**9)
    stages = [Measured("vision", "a", amount, 1.0), Measured("vision", "b", amount, 3.0)]
    fit = fit_shares(stages, "fp16", rates, "made up", PUBLISHED)
    assert 1 / fit.shares.by_kind["vision"] == pytest.approx(1.5)
    # Stages of one size cannot separate fixed time from a low share.
    assert fit.shares.call_ms == 0.0
    assert fit.error == pytest.approx(((1 * 0.5**2 + 3 * 0.5**2) / 4) ** 0.5)
    assert abs(fit.worst) == pytest.approx(0.5)
    assert fit.worst_stage in ("a", "b")


def test_the_fit_finds_the_fixed_time_of_a_call() -> None:
    rates = Rates(1e12, 1e11)
    truth = {"vision": 0.6, "decode": 0.3}
    stages = [
        Measured(kind, f"{kind} {size}", amount, 0.4 + roofline_ms(amount, "fp16", rates) / share)
        for kind, share in truth.items()
        for size in (1, 2, 7)
        for amount in [Amount(flops=size * 10**9)]
    ]
    fit = fit_shares(stages, "fp16", rates, "made up", PUBLISHED)
    assert fit.shares.call_ms == pytest.approx(0.4)
    assert {kind: fit.shares.by_kind[kind] for kind in truth} == pytest.approx(truth)
    # A graph call with more to do that takes less gives no negative time.
    odd = [replace(stage, median_ms=stage.median_ms**2) for stage in stages]
    assert fit_shares(odd, "fp16", rates, "made up", PUBLISHED).shares.call_ms >= 0


# Medians of four rounds on two CPU cores, fp32, ONNX Runtime 1.31, LLaVA-OneVision-0.5B's shapes,
# a picture of two tiles and 52 text tokens (benchmarks/first_token.py, 2026-11-21).
ONEVISION = {
    1.0: {
        **{"vision.0": 1272.88, "vision.1": 241.55, "vision.2": 265.01, "vision.3": 257.48},
        **{"vision.4": 4359.05, "decoder.0": 1843.81, "decoder.1": 4487.78, "lm_head": 27.28},
    },
    0.33: {
        **{"vision.0": 1389.11, "vision.1": 204.54, "vision.2": 178.85, "vision.3": 150.28},
        **{"vision@5": 28.2, "vision@6": 26.41, "vision@7": 20.46, "vision@8": 12.99},
        **{"vision.4": 2068.01, "decoder.0": 892.05, "decoder@7": 6.78, "decoder.1": 1520.02},
        "lm_head": 17.44,
    },
}
ONEVISION_CUTS = {
    1.0: [(5, 729, 729), (6, 729, 729), (7, 729, 729), (8, 729, 729), (7, 1485, 1485)],
    0.33: [(5, 729, 637), (6, 637, 545), (7, 545, 453), (8, 453, 361), (7, 741, 490)],
}


def onevision_stages(ratio: float) -> list[Measured]:
    stages = ("vision", "vision", "vision", "vision", "decoder")
    counts = zip(stages, ONEVISION_CUTS[ratio], strict=True)
    cuts = tuple(Cut(stage, *numbers) for stage, numbers in counts)
    path = TokenPath("illava", 1, 2, 52, 17, cuts[-1].tokens_in, True, cuts)
    dims = load_preset("llava-onevision-0.5b").dims
    found = by_graph(prefill_works(dims, path))
    return [
        Measured("reducer" if "@" in graph else phase, graph, amount, ONEVISION[ratio][graph])
        for (phase, graph), amount in found.items()
        if graph in ONEVISION[ratio]
    ]


def test_the_model_explains_a_real_measurement() -> None:
    """Shares fitted at ratio 1.0 alone predict the first token at 0.33 within 5 %."""
    whole, reduced = onevision_stages(1.0), onevision_stages(0.33)
    rates = best_seen([*whole, *reduced], "fp32")
    fit = fit_shares(whole, "fp32", rates, "measured", PUBLISHED)
    assert fit.error < 0.03
    shares = fit.shares
    guess = sum(
        roofline_ms(each.amount, "fp32", rates) / shares.by_kind[each.kind] + shares.call_ms
        for each in reduced
        if each.kind != "reducer"
    )
    real = sum(each.median_ms for each in reduced if each.kind != "reducer")
    assert guess == pytest.approx(real, rel=0.05)


def test_without_published_rates_the_best_seen_stand_in() -> None:
    stages = [
        Measured("vision", "v", Amount(flops=10**9, weights=10), 2.0),
        Measured("decode", "d", Amount(flops=10, weights=10**8), 4.0),
        Measured("reducer", "r", Amount(flops=10**15, weights=10**15), 1.0),
    ]
    assert best_seen(stages, "fp32") == Rates(0.5e12, 1e11)
    with pytest.raises(
        LvlmError, match="no timed stage with a known cost; profile the bundle again"
    ):
        best_seen([], "fp32")
    with pytest.raises(LvlmError, match="no timed stage"):
        fit_shares([], "fp32", Rates(1, 1), "", PUBLISHED)
