"""The way through the chain: one description, compared with hand-written orders and counts."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import pytest

import tiny
from helpers import build_tiny
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.manifest import Manifest
from lvlm_runtime.bundle.route import (
    budget_graphs,
    cache_bytes,
    cache_rows,
    prompt_steps,
    route,
    shared_graphs,
    step_names,
    visual_tokens,
)
from lvlm_runtime.engines.limits import Limits
from lvlm_runtime.engines.record import SCHEMA, EngineFile, EngineRecord, check_record
from lvlm_runtime.errors import LvlmError


@pytest.fixture(scope="module")
def llava(tiny_llava: Path) -> Manifest:
    """A CLIP tower of 36 patches, a site in the tower and one in the decoder."""
    return Bundle.open(tiny_llava / "bundle").manifest


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """OneVision tiles, a packer, and a reducer between it and the decoder."""
    directory = tmp_path_factory.mktemp("packed")
    path = tiny.onevision(directory / "checkpoint")
    options = {"method": "divprune", "image_size": (100, 140)}
    return Bundle.open(build_tiny(path, directory / "bundle", 0.5, **options).directory).manifest


def test_the_order_is_that_of_the_chain(llava: Manifest) -> None:
    budget = llava.budgets[0]
    sites = [cut.site for cut in budget.vision]
    expected = ["vision.0"]
    for index, site in enumerate(sites, 1):
        expected += [site, f"vision.{index}"]
    [cut] = budget.layouts[0].decoder
    expected += ["assemble", "decoder.0", cut.site, "decoder.1", "lm_head"]
    assert [step.name for step in route(llava, budget, budget.layouts[0])] == expected


def test_tokens_are_handed_on_from_step_to_step(llava: Manifest, packed: Manifest) -> None:
    for manifest in (llava, packed):
        for budget in manifest.budgets:
            for part in budget.layouts:
                steps = route(manifest, budget, part)
                tower = [step for step in steps if step.per == "tile"]
                behind = [step for step in steps if step.per == "image"]
                assert tower[0].tokens_in == manifest.vision_tokens
                assert behind[0].tokens_in == part.tokens_projected
                assert behind[-1].tokens_out == part.tokens_out
                for chain in (tower, behind):
                    for one, following in itertools.pairwise(chain):
                        assert one.tokens_out == following.tokens_in, following.name


def test_a_packer_and_a_projected_site_stand_before_assemble(packed: Manifest) -> None:
    budget = packed.budgets[0]
    part = budget.layouts[0]
    names = [step.name for step in route(packed, budget, part)]
    assert names == [
        *("vision.0", "packer", "projected@0", "assemble", "decoder.0", "lm_head"),
    ]
    assert part.projected is not None
    assert visual_tokens(route(packed, budget, part)) == (
        ("vision", "tile", packed.vision_tokens),
        ("projected", "image", part.projected.tokens_in),
        ("decoder", "image", part.projected.tokens_out),
    )


def test_the_unreduced_model_passes_no_reducer(llava: Manifest) -> None:
    budget = next(each for each in llava.budgets if each.ratio == 1.0)
    steps = route(llava, budget, budget.layouts[0])
    assert [step for step in steps if step.kind == "reducer"] == []
    assert {name for step in steps for name in step.graphs} == set(shared_graphs(llava))
    assert budget_graphs(llava, budget) == frozenset()


def test_every_graph_of_a_bundle_is_on_some_way(llava: Manifest, packed: Manifest) -> None:
    for manifest in (llava, packed):
        files = {name for name in manifest.files if name.endswith(".onnx")}
        own = {name for budget in manifest.budgets for name in budget_graphs(manifest, budget)}
        assert own.isdisjoint(shared_graphs(manifest))
        assert own | set(shared_graphs(manifest)) == files


def test_text_alone_passes_the_decoder_only(llava: Manifest) -> None:
    steps = prompt_steps(llava, None)
    assert [step.name for step in steps] == ["decoder.0", "decoder.1", "lm_head"]
    assert {step.tokens_in for step in steps} == {0}


def test_names_of_all_budgets_stand_in_the_order_they_are_passed(llava: Manifest) -> None:
    names = step_names(llava)
    assert len(set(names)) == len(names)
    for budget in llava.budgets:
        own = [step.name for step in route(llava, budget, budget.layouts[0])]
        assert own == [name for name in names if name in own]


@pytest.mark.slow
def test_a_site_on_the_picture_comes_first(tiny_llava: Path, tmp_path: Path) -> None:
    options = {"method": "downsample", "baseline": False}
    built = build_tiny(tiny_llava / "checkpoint", tmp_path / "bundle", 0.5, **options)
    manifest = Bundle.open(built.directory).manifest
    [budget] = manifest.budgets
    names = [step.name for step in route(manifest, budget, budget.layouts[0])]
    assert names[:2] == ["pixels@0", "vision.0"]
    assert visual_tokens(route(manifest, budget, budget.layouts[0]))[:2] == (
        ("vision", "tile", 36),
        ("pixels@0", "tile", budget.vision[0].tokens_out),
    )


def test_caches_hold_the_prompt_as_it_is_behind_each_site(llava: Manifest) -> None:
    part = llava.budgets[0].layouts[0]
    rows = cache_rows(llava, part, images=2, text_tokens=10, answer_tokens=5)
    assert rows == {
        "decoder.0": 10 + 2 * part.tokens_in + 5,
        "decoder.1": 10 + 2 * part.tokens_out + 5,
    }
    assert cache_rows(llava, None, 0, 10, 5) == {"decoder.0": 15, "decoder.1": 15}
    text = llava.text
    layers = [stage.last_layer - stage.first_layer for stage in llava.decoder]
    expected = sum(
        2 * count * rows[stage.name] * text.kv_heads * text.head_dim * 4
        for count, stage in zip(layers, llava.decoder, strict=True)
    )
    assert cache_bytes(llava, rows, 4) == expected


def test_a_step_with_several_files_has_no_single_one(llava: Manifest) -> None:
    split = dataclasses.replace(llava, lm_head=("lm_head.0.onnx", "lm_head.1.onnx"))
    head = prompt_steps(split, None)[-1]
    assert head.graphs == split.lm_head
    with pytest.raises(ValueError, match="too many values"):
        _ = head.graph


@pytest.mark.parametrize("kind", ["quecc", pytest.param("tokenpacker", marks=pytest.mark.slow)])
def test_engines_without_one_that_a_request_passes_are_refused_by_name(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """The projector's engine once counted as unused, and its absence was a KeyError later."""
    if kind == "quecc":
        bundle: Path = request.getfixturevalue("tiny_quecc") / "bundle"
    else:
        checkpoint = tiny.projected(tmp_path / "checkpoint", kind, 3)
        bundle = build_tiny(checkpoint, tmp_path / "bundle", 0.5, method="fastv").directory
    manifest = Bundle.open(bundle).manifest
    graphs = [name for name in manifest.files if name.endswith(".onnx")]
    engines = {
        name: EngineFile(f"{name}.engine", 1, "", manifest.files[name].sha256, 0, None, ())
        for name in graphs
    }
    capabilities, limits = ("sm89",), Limits(10, 5, 1)
    whole = EngineRecord(
        SCHEMA,
        manifest.content_key,
        "rtx",
        "1.7",
        None,
        capabilities,
        None,
        manifest.precision,
        limits,
        engines,
    )

    def check(record: EngineRecord) -> None:
        check_record(bundle, manifest, record, "rtx", "1.7", "sm89", "13.0")

    check(whole)
    assert "projector.onnx" in graphs
    for name in graphs:
        fewer = {graph: engine for graph, engine in engines.items() if graph != name}
        with pytest.raises(LvlmError, match=rf"has no engine of {re.escape(name)} for rtx; build"):
            check(dataclasses.replace(whole, engines=fewer))


def test_the_walk_stands_in_one_module() -> None:
    """Who else spells the picture's site walks by hand; the exporter's Site is built from parts."""
    root = Path(__file__).resolve().parents[3]
    found = [
        str(path.relative_to(root))
        for package in ("exporter", "runtime", "profiles")
        for path in (root / package).rglob("*.py")
        if '"pixels@0"' in path.read_text(encoding="utf-8")
    ]
    assert found == ["runtime/lvlm_runtime/bundle/route.py"]
