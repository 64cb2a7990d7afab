"""Methods put together and placed by hand: counts and refusals."""

from __future__ import annotations

import itertools
from math import log

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lvlm_export.reduction import METHODS, load_method
from lvlm_export.reduction.budget import BudgetPlan, Geometry, SiteCount
from lvlm_export.reduction.compose import parse_site, role_in_composed
from lvlm_export.reduction.method import STAGES, Site
from lvlm_export.reduction.schedule import plan_budget
from lvlm_runtime.bundle.placement import HandBudget, HandPlacement
from lvlm_runtime.errors import UsageError
from lvlm_runtime.image import anyres

FIRST = [name for name in METHODS if role_in_composed(load_method(name)) == "first"]
SECOND = [name for name in METHODS if role_in_composed(load_method(name)) == "second"]


def llava(tokens: int = 576, vision: int = 23, text: int = 32) -> Geometry:
    return Geometry(vision, tokens, text, (anyres.IMAGE_LAYOUT,), False, lambda _layout, kept: kept)


def onevision() -> Geometry:
    pinpoints = [(384 * r, 384 * c) for r in range(1, 7) for c in range(1, 7)]
    single = anyres.layout_for(800, 1000, pinpoints, 384)

    def tokens(layout: anyres.TileLayout, kept: int) -> int:
        return anyres.visual_tokens(layout, round(kept**0.5), 9)

    return Geometry(26, 729, 28, (single, anyres.MULTI_LAYOUT), True, tokens)


def counted(budget: BudgetPlan) -> list[SiteCount]:
    (layout,) = budget.layouts
    return [*budget.vision, *layout.counts]


def plan(method: str, ratio: float, placement: HandPlacement, geometry: Geometry) -> list[str]:
    budget = plan_budget(ratio, load_method(method, placement), geometry)
    return [f"{each.site.name} {each.tokens_in}-{each.tokens_out}" for each in counted(budget)]


def test_every_side_has_methods_and_the_rest_goes_alone() -> None:
    assert {"visionzip", "divprune", "prumerge", "cdpruner"} <= set(FIRST)
    assert {"fastv", "dart", "pyramiddrop"} <= set(SECOND)
    alone = set(METHODS) - set(FIRST) - set(SECOND)
    assert {"none", "illava", "illava_v1", "random", "uniform", "image_text", "vtw"} <= alone


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("second", SECOND)
def test_any_two_sides_go_together_in_either_order(first: str, second: str) -> None:
    method, other = load_method(f"{first}+{second}"), load_method(f"{second}+{first}")
    assert method.name == other.name == f"{first}+{second}"
    parts = load_method(first), load_method(second)
    sites = method.sites(23, 32, 0.5)
    assert sites == (*parts[0].sites(23, 32, 0.5), *parts[1].sites(23, 32, 0.5))
    for site in sites:
        assert method.merges_at(site) == parts[site.stage == "decoder"].merges
    for flag in ("needs_cls", "appends", "merges"):
        assert getattr(method, flag) == any(getattr(part, flag) for part in parts)


@given(
    first=st.sampled_from(sorted(set(FIRST) - {"tome", "downsample"})),
    second=st.sampled_from(sorted(SECOND)),
    ratio=st.floats(0.03, 0.97),
    tokens=st.integers(100, 800),
)
@settings(deadline=None, max_examples=100)
def test_counts_shrink_along_both_parts_and_land_on_the_ratio(
    first: str, second: str, ratio: float, tokens: int
) -> None:
    assume(round(ratio * tokens) >= 1)
    counts = counted(plan_budget(ratio, load_method(f"{first}+{second}"), llava(tokens)))
    assert counts[0].tokens_in == tokens
    assert counts[-1].tokens_out == round(ratio * tokens)
    for before, after in itertools.pairwise(counts):
        assert before.tokens_out == after.tokens_in
    assert all(1 <= each.tokens_out <= each.tokens_in for each in counts)
    entering = next(each.tokens_in for each in counts if each.site.stage == "decoder")
    assert entering == pytest.approx(tokens * ratio**0.6067, abs=2)


def test_a_composed_method_enters_the_decoder_with_as_many_tokens_as_illava() -> None:
    for ratio in (0.5, 0.33, 0.1):
        baseline = plan_budget(ratio, load_method("illava"), llava())
        for name in ("visionzip+fastv", "divprune+pyramiddrop"):
            counts = counted(plan_budget(ratio, load_method(name), llava()))
            entering = next(each.tokens_in for each in counts if each.site.stage == "decoder")
            assert entering == baseline.layouts[0].tokens_in


def test_a_share_moves_the_split() -> None:
    half = HandPlacement(vision_share=0.5)
    assert plan("visionzip+fastv", 0.25, half, llava()) == [
        "features@23 576-288",
        "decoder@2 288-144",
    ]
    assert plan("divprune+fastv", 0.25, half, llava()) == [
        "projected@0 576-288",
        "decoder@2 288-144",
    ]
    # Of a method that acts on both sides as well.
    assert plan("illava_v1", 0.25, half, llava())[-1] == "decoder@9 288-144"
    assert plan("illava", 0.25, half, llava())[3:5] == ["vision@7 342-288", "decoder@22 288-242"]
    default = counted(plan_budget(0.25, load_method("visionzip+fastv"), llava()))
    assert log(default[0].tokens_out / 576) / log(0.25) == pytest.approx(0.607, abs=2e-3)


def test_sites_by_hand_take_the_place_of_the_published() -> None:
    placed = HandPlacement(("decoder@8", "vision@6", "vision@5"))
    assert plan("illava", 0.25, placed, llava()) == [
        "vision@5 576-378",
        "vision@6 378-248",
        "decoder@8 248-144",
    ]
    assert plan("illava_v1", 0.25, placed, llava()) == [
        "vision@5 576-402",
        "vision@6 402-229",
        "decoder@8 229-144",
    ]
    assert plan("illava", 0.25, HandPlacement(("vision@3",)), llava()) == ["vision@3 576-144"]
    moved = HandPlacement(("features@23", "decoder@16"))
    assert plan("visionzip+fastv", 0.25, moved, llava())[1].startswith("decoder@16 ")
    # Published unequal steps are for three sites; at two by hand they are equal.
    two = HandPlacement(("decoder@4", "decoder@8"))
    assert plan("pyramiddrop", 0.25, two, llava()) == ["decoder@4 576-288", "decoder@8 288-144"]


@given(
    layers=st.lists(st.integers(1, 31), min_size=1, max_size=6, unique=True),
    ratio=st.floats(0.05, 0.95),
)
@settings(deadline=None, max_examples=60)
def test_decoder_sites_by_hand_come_in_order_and_land_on_the_ratio(
    layers: list[int], ratio: float
) -> None:
    method = load_method("fastv", HandPlacement(tuple(f"decoder@{layer}" for layer in layers)))
    counts = counted(plan_budget(ratio, method, llava()))
    assert [each.site.layer for each in counts] == sorted(layers)
    assert counts[-1].tokens_out == round(ratio * 576)
    assert all(
        before.tokens_out >= after.tokens_out for before, after in itertools.pairwise(counts)
    )


def test_counts_by_hand_are_taken_as_they_are() -> None:
    by_hand = HandBudget(0.125, {"features@23": 144, "decoder@3": 0.5})
    placement = HandPlacement(budgets=(by_hand,))
    assert plan("visionzip+fastv", 0.125, placement, llava()) == [
        "features@23 576-144",
        "decoder@3 144-72",
    ]
    # Another ratio of the same bundle is the schedule's, at the method's own sites.
    assert plan("visionzip+fastv", 0.5, placement, llava())[1].startswith("decoder@2 ")
    shares = HandBudget(0.25, {"features@26": 361, "decoder@4": 0.5})
    budget = plan_budget(
        0.25, load_method("visionzip+fastv", HandPlacement((), None, (shares,))), onevision()
    )
    for part in budget.layouts:
        assert part.tokens_out == round(part.tokens_in / 2)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "fastv+dart",
            r"fastv\+dart: fastv and dart both act in the decoder; .* one of anchors, cdpruner,",
        ),
        ("visionzip+divprune", "visionzip and divprune both act before the decoder; .* of dart,"),
        ("visionzip+fastv+dart", "fastv and dart both act in the decoder"),
        ("illava+fastv", "illava acts before and in the decoder already; a composed method is"),
        ("vtw+visionzip", "vtw withdraws every visual token; a composed method is one of"),
        ("none+fastv", "none reduces nothing at a site; a composed method is one of"),
        ("visionzip+magic", "unknown method 'magic'; known: anchors, cdpruner, "),
        ("visionzip+", "unknown method ''; known: anchors, cdpruner, "),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        load_method(name)


@pytest.mark.parametrize(
    ("method", "sites", "line"),
    [
        ("fastv", ["vision@5"], "fastv acts at decoder sites, not at vision@5"),
        ("illava", ["features@23"], "acts at vision and decoder sites, not at features@23"),
        ("illava", ["vision@5", "vision@5"], "site vision@5 is given twice; give it once"),
        ("vtw", ["decoder@5"], "method vtw takes its site from the ratio; leave the sites out"),
        ("visionzip+fastv", ["decoder@5"], r"none .* for visionzip of visionzip\+fastv.*fastv$"),
        ("none", ["decoder@5"], "method none acts at no sites, not at decoder@5"),
    ],
)
def test_sites_that_a_method_does_not_have_are_refused(
    method: str, sites: list[str], line: str
) -> None:
    with pytest.raises(UsageError, match=line):
        load_method(method, HandPlacement(tuple(sites)))


@pytest.mark.parametrize(
    ("method", "site", "line"),
    [
        ("illava", "vision@23", "vision@23 is not in this model; it has vision@0 to vision@22"),
        ("fastv", "decoder@32", "decoder@32 is not in this model; it has decoder@1 to decoder@31"),
        ("fastv", "decoder@0", "decoder@0 is not in this model; it has decoder@1 to decoder@31"),
        ("visionzip", "features@22", "features@22 is not in this model; it has features@23$"),
        ("divprune", "projected@1", "projected@1 is not in this model; it has projected@0$"),
    ],
)
def test_sites_that_a_model_does_not_have_are_refused(method: str, site: str, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        plan_budget(0.5, load_method(method, HandPlacement((site,))), llava())


@pytest.mark.parametrize("text", ["vision5", "vision@", "vision@x", "vision@-1", "", "vision@1.5"])
def test_a_name_that_is_no_site_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no site; write stage@layer, for example vision@5"):
        parse_site(text)


def test_a_stage_that_is_none_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=f"'text@5' is no site: stages are {', '.join(STAGES)}"):
        parse_site("text@5")
    assert [parse_site(f" {stage}@7 ") for stage in STAGES] == [Site(stage, 7) for stage in STAGES]


def test_a_share_needs_two_sides() -> None:
    with pytest.raises(UsageError, match="fastv acts on one side of the decoder's input"):
        load_method("fastv", HandPlacement(vision_share=0.5))


@pytest.mark.parametrize(
    ("keep", "line"),
    [
        ({"features@23": 600, "decoder@3": 72}, "features@23 is to keep 600 tokens and only 576"),
        ({"features@23": 72, "decoder@3": 144}, "decoder@3 is to keep 144 tokens and only 72"),
        ({"features@23": 288, "decoder@3": 144}, "keep 144 of 576 tokens; write ratio = 0.250"),
    ],
)
def test_counts_that_do_not_fit_are_refused(keep: dict[str, float], line: str) -> None:
    placement = HandPlacement(budgets=(HandBudget(0.125, keep),))
    with pytest.raises(UsageError, match=line):
        plan_budget(0.125, load_method("visionzip+fastv", placement), llava())


def test_counts_of_tiles_must_be_squares() -> None:
    by_hand = HandBudget(0.5, {"features@26": 360, "decoder@4": 0.9})
    method = load_method("visionzip+fastv", HandPlacement(budgets=(by_hand,)))
    with pytest.raises(UsageError, match=r"keeps 360 .* as squares; .* are 324 and 361"):
        plan_budget(0.5, method, onevision())
