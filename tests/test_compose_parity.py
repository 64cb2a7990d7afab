"""Composed and hand-placed methods inside the whole chain against PyTorch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import tiny
from helpers import build_tiny
from lvlm_export.check.parity import synthetic_samples, verify
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions, make_plan, options_of
from lvlm_export.reduction import METHODS, load_method
from lvlm_export.reduction.compose import role_in_composed
from lvlm_runtime.bundle.placement import HandBudget, HandPlacement
from lvlm_runtime.session import Session

FIRST = [name for name in METHODS if role_in_composed(load_method(name)) == "first"]
SECOND = [name for name in METHODS if role_in_composed(load_method(name)) == "second"]

CASES = [
    ("visionzip+fastv", "llava", HandPlacement(("features@4", "decoder@3"))),
    pytest.param(
        "visionzip+fastv", "onevision", HandPlacement(vision_share=0.5), marks=pytest.mark.slow
    ),
    pytest.param(
        "illava", "llava", HandPlacement(("vision@0", "decoder@3")), marks=pytest.mark.slow
    ),
]
# Every method once, with one of the other side.
PAIRS = [(first, "fastv") for first in FIRST]
PAIRS += [("visionzip", second) for second in SECOND if second != "fastv"]
SLOW = [
    pytest.param(f"{first}+{second}", family, HandPlacement(), marks=pytest.mark.slow)
    for first, second in PAIRS
    for family in ("llava", "onevision")
    if family == "llava"
    or (not any(getattr(load_method(first), flag) for flag in ("needs_cls", "appends")))
]


@pytest.mark.parametrize(("method", "family", "placement"), [*CASES, *SLOW])
def test_the_chain_equals_pytorch(
    method: str, family: str, placement: HandPlacement, tmp_path: Path
) -> None:
    options = {"method": method, "placement": placement}
    if family == "onevision":
        options["image_size"] = (100, 140)
    wide = family == "onevision" and load_method(method).needs_rank
    model = getattr(tiny, family)(tmp_path / family, **({"text_width": 288} if wide else {}))
    checkpoint = Checkpoint.open(model)
    result = build_tiny(checkpoint.directory, tmp_path / "bundle", 0.4, **options)
    manifest = result.manifest
    assert (manifest.method, manifest.placement) == (load_method(method).name, placement)
    wanted = make_plan(checkpoint, BuildOptions((0.4,), **options))
    # The plan that ``verify`` computes from the manifest is the same.
    assert make_plan(checkpoint, options_of(manifest)).budgets == wanted.budgets
    session = Session.open(result.directory, device="cpu")
    samples = synthetic_samples(wanted.shape.layouts, 1, seed=5)
    report = verify(session, checkpoint, wanted, samples, 8, lambda _step: None)
    assert max(row.error for row in report.stages) < 2e-4
    assert [row for row in report.answers if not row.passed] == []
    sites = {site.name for site in wanted.sites}
    assert sites <= {row.stage for row in report.stages if row.ratio < 1}


def test_sites_share_and_counts_are_part_of_the_content_key(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.llava(tmp_path / "llava"))
    options = BuildOptions((0.5,), method="visionzip+fastv")
    by_hand = HandBudget(0.5, {"features@4": 27, "decoder@2": 18})
    placements = [
        HandPlacement(),
        HandPlacement(("features@4", "decoder@3")),
        HandPlacement(vision_share=0.5),
        HandPlacement(budgets=(by_hand,)),
    ]
    keys = {
        make_plan(checkpoint, dataclasses.replace(options, placement=placement)).key
        for placement in placements
    }
    assert len(keys) == len(placements)
