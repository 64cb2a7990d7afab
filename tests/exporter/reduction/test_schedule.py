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


@pytest.mark.parametrize("ratio", [0.85**4 * 0.9**4, 0.3425])
@pytest.mark.parametrize("method", ["illava", "random", "uniform"])
def test_illava_at_its_published_point(method: str, ratio: float) -> None:
    """0.85 at vision layers 5 to 8, 0.9 at decoder layers 19, 21, 23 and 25. Source: METHODS §2.6.

    The counts are those of the authors' own rounding, ``round(N * 0.85)`` and ``N - round(N * 0.1)``.
    """
    sites, counts, left = ["vision@5", "vision@6", "vision@7", "vision@8"], [], 729
    for _ in range(4):
        counts.append((left, round(left * 0.85)))
        left = counts[-1][1]
    for layer in (19, 21, 23, 25):
        sites.append(f"decoder@{layer}")
        counts.append((left, left - round(left * (1 - 0.9))))
        left = counts[-1][1]
    assert left == 250
    budget = plan_budget(ratio, load_method(method), llava())
    found = [*budget.vision, *budget.layouts[0].decoder]
    assert [count.site.name for count in found] == sites
    assert [(count.tokens_in, count.tokens_out) for count in found] == counts


@pytest.mark.parametrize("ratio", [253 / 729, 0.347])
def test_illava_v1_at_its_published_point(ratio: float) -> None:
    """729 -> 361 in four equal steps of 92, then 253. Source: METHODS §2.3, iLLaVA's repository."""
    budget = plan_budget(ratio, load_method("illava_v1"), llava())
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


def test_illava_shares_are_those_of_the_published_points() -> None:
    assert load_method("illava_v1").vision_share == pytest.approx(
        math.log(361 / 729) / math.log(253 / 729), abs=5e-4
    )
    share = load_method("illava").vision_share
    assert share == pytest.approx(math.log(0.85**4) / math.log(0.85**4 * 0.9**4), abs=1e-12)
    assert share == pytest.approx(0.607, abs=5e-4)


@pytest.mark.parametrize("ratio", [0.75, 0.2])
def test_another_ratio_keeps_illavas_split_in_equal_steps_of_the_logarithm(ratio: float) -> None:
    budget = plan_budget(ratio, load_method("illava"), llava(10000))
    counts = [*budget.vision, *budget.layouts[0].decoder]
    steps = [math.log(count.tokens_out / count.tokens_in) / math.log(ratio) for count in counts]
    assert steps == pytest.approx([0.607 / 4] * 4 + [0.393 / 4] * 4, abs=1e-3)


def test_illava_v1_shares_of_qwen2_vl() -> None:
    """METHODS §2.3: four vision layers keep 0.84 each, three decoder layers 0.90: about 0.36.

    Its vision encoder carries nearly the part of the logarithm that OneVision's does, so one
    ``vision_share`` serves both.
    """
    vision, decoder = 0.84**4, 0.9**3
    assert (round(vision, 2), round(decoder, 2)) == (0.50, 0.73)
    assert vision * decoder == pytest.approx(0.36, abs=0.005)
    share = math.log(vision) / math.log(vision * decoder)
    assert load_method("illava_v1").vision_share == pytest.approx(share, abs=0.03)
    budget = plan_budget(vision * decoder, load_method("illava_v1"), llava(1000))
    assert budget.vision[-1].tokens_out == pytest.approx(1000 * vision, rel=0.03)
    assert budget.layouts[0].tokens_out == round(1000 * vision * decoder)


@pytest.mark.parametrize(
    ("depths", "vision", "decoder"),
    [
        ((26, 28), [5, 6, 7, 8], [19, 21, 23, 25]),
        ((27, 36), [5, 6, 7, 8], [24, 27, 30, 32]),
        ((23, 32), [4, 5, 6, 7], [22, 24, 26, 29]),
        ((12, 6), [2, 3, 4], [4, 5]),
        # A decoder of four layers: 25 of 28 rounds past its last, which is the site then.
        ((4, 4), [1], [3]),
        ((4, 2), [1], [1]),
    ],
)
def test_sites_sit_at_the_same_fractions(
    depths: tuple[int, int], vision: list[int], decoder: list[int]
) -> None:
    assert published_sites(*depths) == (
        *(Site("vision", layer) for layer in vision),
        *(Site("decoder", layer) for layer in decoder),
    )


@pytest.mark.parametrize(
    ("depths", "vision", "decoder"),
    [
        ((26, 28), [5, 6, 7, 8], 8),
        ((23, 32), [4, 5, 6, 7], 9),
        ((12, 6), [2, 3, 4], 2),
        ((4, 2), [1], 1),
    ],
)
def test_sites_of_illava_v1_are_as_they_were(
    depths: tuple[int, int], vision: list[int], decoder: int
) -> None:
    sites = load_method("illava_v1").sites(*depths, 0.5)
    assert sites == (*(Site("vision", layer) for layer in vision), Site("decoder", decoder))


@given(
    method=st.sampled_from(["illava", "illava_v1"]),
    ratio=st.floats(0.02, 0.999),
    tokens=st.integers(60, 800),
    depths=st.tuples(st.integers(2, 40), st.integers(2, 40)),
)
@settings(deadline=None, max_examples=150)
def test_counts_shrink_from_site_to_site_and_land_on_the_ratio(
    method: str, ratio: float, tokens: int, depths: tuple[int, int]
) -> None:
    assume(round(ratio * tokens) >= 1)
    budget = plan_budget(ratio, load_method(method), llava(tokens, *depths))
    (layout,) = budget.layouts
    counts = [*budget.vision, *layout.decoder]
    assert counts[0].tokens_in == tokens
    for before, after in itertools.pairwise(counts):
        assert before.tokens_out == after.tokens_in
    assert all(1 <= count.tokens_out <= count.tokens_in for count in counts)
    assert layout.tokens_out == round(ratio * tokens)
    removed = [count.tokens_in - count.tokens_out for count in budget.vision]
    if method == "illava_v1":
        assert max(removed) - min(removed) <= 1, "the vision sites share the removal evenly"
    else:
        # Equal shares: earlier sites have more to remove from; each count is rounded by half at most.
        assert all(before >= after - 2 for before, after in itertools.pairwise(removed))


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


def test_onevision_published_points_are_squares() -> None:
    """729 -> 361 was chosen for it; of the current release's 381 the nearest square is 400."""
    for name, ratio, counts in (
        ("illava_v1", 0.347, [637, 545, 453, 361]),
        ("illava", 0.3425, [627, 540, 465, 400]),
    ):
        budget = plan_budget(ratio, load_method(name), onevision(384, 384))
        assert [count.tokens_out for count in budget.vision] == counts
        assert {round(part.achieved, 2) for part in budget.layouts} == {round(ratio, 2)}


@pytest.mark.parametrize("name", ["illava", "illava_v1", "random", "none"])
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
    for name in ("illava", "illava_v1"):
        with pytest.raises(UsageError, match=r"needs a decoder layer after its site"):
            plan_budget(0.5, load_method(name), llava(729, 26, 1))
