"""Ratio to integers: published points, bounds and refusals."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lvlm_export.reduction import load_method
from lvlm_export.reduction.budget import Geometry
from lvlm_export.reduction.method import Site
from lvlm_export.reduction.methods.illava import published_sites
from lvlm_export.reduction.schedule import parse_ratio, plan_budget, spread_evenly
from lvlm_runtime.errors import UsageError
from lvlm_runtime.image import anyres


def llava(tokens: int = 729, vision: int = 26, text: int = 28) -> Geometry:
    return Geometry(vision, tokens, text, (anyres.IMAGE_LAYOUT,), False, lambda _layout, kept: kept)


def onevision(height: int, width: int) -> Geometry:
    pinpoints = [(384 * r, 384 * c) for r in range(1, 7) for c in range(1, 7)]
    single = anyres.layout_for(height, width, pinpoints, 384)

    def tokens(layout: anyres.TileLayout, kept: int) -> int:
        return anyres.visual_tokens(layout, round(kept**0.5), 9)

    return Geometry(26, 729, 28, (single, anyres.MULTI_LAYOUT), True, tokens)


@pytest.mark.parametrize("ratio", [253 / 729, 0.347])
def test_illava_at_its_published_point(ratio: float) -> None:
    """729 -> 361 in four equal steps of 92, then 253. Source: METHODS §2, iLLaVA's repository."""
    budget = plan_budget(ratio, load_method("illava"), llava())
    assert [count.site.name for count in budget.vision] == [
        "vision@5",
        "vision@6",
        "vision@7",
        "vision@8",
    ]
    assert [(count.tokens_in, count.tokens_out) for count in budget.vision] == [
        (729, 637),
        (637, 545),
        (545, 453),
        (453, 361),
    ]
    (layout,) = budget.layouts
    assert [(count.site.name, count.tokens_in, count.tokens_out) for count in layout.decoder] == [
        ("decoder@8", 361, 253)
    ]


def test_illava_share_is_that_of_the_published_point() -> None:
    assert load_method("illava").vision_share == pytest.approx(
        math.log(361 / 729) / math.log(253 / 729), abs=5e-4
    )


def test_illava_shares_of_qwen2_vl() -> None:
    """METHODS §2.3: four vision layers keep 0.84 each, three decoder layers 0.90: about 0.36.

    Its vision encoder carries nearly the part of the logarithm that OneVision's does, so one
    ``vision_share`` serves both.
    """
    vision, decoder = 0.84**4, 0.9**3
    assert (round(vision, 2), round(decoder, 2)) == (0.50, 0.73)
    assert vision * decoder == pytest.approx(0.36, abs=0.005)
    share = math.log(vision) / math.log(vision * decoder)
    assert load_method("illava").vision_share == pytest.approx(share, abs=0.03)
    budget = plan_budget(vision * decoder, load_method("illava"), llava(1000))
    assert budget.vision[-1].tokens_out == pytest.approx(1000 * vision, rel=0.03)
    assert budget.layouts[0].tokens_out == round(1000 * vision * decoder)


@pytest.mark.parametrize(
    ("depths", "vision", "decoder"),
    [
        ((26, 28), [5, 6, 7, 8], 8),
        ((23, 32), [4, 5, 6, 7], 9),
        ((12, 6), [2, 3, 4], 2),
        ((4, 2), [1], 1),
    ],
)
def test_sites_sit_at_the_same_fractions(
    depths: tuple[int, int], vision: list[int], decoder: int
) -> None:
    sites = published_sites(*depths)
    assert sites == (*(Site("vision", layer) for layer in vision), Site("decoder", decoder))


@given(
    ratio=st.floats(0.02, 0.999),
    tokens=st.integers(60, 800),
    depths=st.tuples(st.integers(2, 40), st.integers(2, 40)),
)
@settings(deadline=None, max_examples=150)
def test_counts_shrink_from_site_to_site_and_land_on_the_ratio(
    ratio: float, tokens: int, depths: tuple[int, int]
) -> None:
    assume(round(ratio * tokens) >= 1)
    budget = plan_budget(ratio, load_method("illava"), llava(tokens, *depths))
    (layout,) = budget.layouts
    counts = [*budget.vision, *layout.decoder]
    assert counts[0].tokens_in == tokens
    for before, after in itertools.pairwise(counts):
        assert before.tokens_out == after.tokens_in
    assert all(1 <= count.tokens_out <= count.tokens_in for count in counts)
    assert layout.tokens_out == round(ratio * tokens)
    removed = [count.tokens_in - count.tokens_out for count in budget.vision]
    assert max(removed) - min(removed) <= 1, "the vision sites share the removal evenly"


@given(ratio=st.floats(0.05, 0.999), size=st.tuples(st.integers(200, 2000), st.integers(200, 2000)))
@settings(deadline=None, max_examples=100)
def test_anyres_keeps_a_square_per_tile_and_reaches_the_ratio(
    ratio: float, size: tuple[int, int]
) -> None:
    geometry = onevision(*size)
    budget = plan_budget(ratio, load_method("illava"), geometry)
    kept = budget.vision[-1].tokens_out
    assert round(kept**0.5) ** 2 == kept
    for part in budget.layouts:
        assert part.tokens_out == round(ratio * part.tokens_full)
        assert part.tokens_out <= part.tokens_in


def test_onevision_published_point_is_a_square() -> None:
    budget = plan_budget(0.347, load_method("illava"), onevision(384, 384))
    assert budget.vision[-1].tokens_out == 361


@pytest.mark.parametrize("name", ["illava", "random", "none"])
def test_ratio_one_has_no_reduction_at_all(name: str) -> None:
    budget = plan_budget(1.0, load_method(name), llava())
    assert budget.vision == ()
    assert budget.layouts[0].decoder == ()
    assert budget.layouts[0].tokens_out == 729


def test_spread_gives_the_remainder_to_the_first_sites() -> None:
    sites = [Site("vision", layer) for layer in (1, 2, 3)]
    assert [count.tokens_out for count in spread_evenly(20, 12, sites)] == [17, 14, 12]


@pytest.mark.parametrize("text", ["0", "0.0", "1.5", "-0.3", "nan", "inf"])
def test_a_ratio_outside_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"outside \(0, 1\]; a ratio is the share .* KEPT"):
        parse_ratio(text)


def test_a_ratio_that_is_no_number_is_refused() -> None:
    with pytest.raises(UsageError, match=r"ratio 'abc' is not a number; .* for example 0.33"):
        parse_ratio("abc")


def test_an_unreachable_ratio_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"less than one visual token; the nearest .* is 0.02778"):
        plan_budget(0.001, load_method("illava"), llava(36))
    with pytest.raises(UsageError, match=r"method none cannot reach ratio 0.5; the nearest .* 1.0"):
        plan_budget(0.5, load_method("none"), llava())
    with pytest.raises(UsageError, match=r"needs a decoder layer after its site"):
        plan_budget(0.5, load_method("illava"), llava(729, 26, 1))
