"""One bundle with tile layouts for several picture sizes: each equals PyTorch, each picture finds its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from helpers import build_tiny
from lvlm_export.check.parity import synthetic_samples, verify
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import make_plan, options_of
from lvlm_runtime.bundle.bundle import read_manifest
from lvlm_runtime.session import Session

SIZES = ((60, 140), (140, 60))
# Size of a picture and the layout that it finds; not the first one, and not letterboxed, is the point.
FOUND = {
    "internvl": {(60, 140): "tiles", (140, 60): "tiles-60x140", (1400, 601): "tiles-60x140"},
    "onevision": {(60, 140): "single", (140, 60): "single-60x140", (280, 120): "single-60x140"},
}


@pytest.mark.parametrize("family", ["internvl", pytest.param("onevision", marks=pytest.mark.slow)])
def test_every_layout_equals_pytorch_and_a_picture_finds_its_own(
    family: str, tmp_path: Path
) -> None:
    path = getattr(tiny, family)(tmp_path / family)
    options: dict[str, Any] = {"image_size": SIZES[0], "more_sizes": SIZES[1:], "method": "local"}
    result = build_tiny(path, tmp_path / "bundle", 0.5, **options)
    checkpoint = Checkpoint.open(path)
    manifest = read_manifest(result.directory)
    plan = make_plan(checkpoint, options_of(manifest))
    assert plan.key == manifest.content_key
    session = Session.open(result.directory, device="cpu")
    samples = synthetic_samples(plan.shape.layouts, 1, seed=5)
    report = verify(session, checkpoint, plan, samples, 6, lambda _step: None)
    assert max(row.error for row in report.stages) < 2e-4
    assert [row for row in report.answers if not row.passed] == []
    full = {part.layout: part.tokens_full for part in manifest.budgets[-1].layouts}
    for size, name in FOUND[family].items():
        picture = np.full((*size, 3), 127, np.uint8)
        layout = session.layout([picture])
        assert layout is not None
        assert layout.name == name
        answer = session.generate("What is it?", [picture], 1.0, max_new_tokens=1)
        assert (answer.visual_tokens[-1][1], answer.letterboxed) == (full[name], ())
    assert session.layout([]) is None
    check_several(session)
    chat = session.chat()
    held = chat.ask("What is it?", [np.full((140, 60, 3), 127, np.uint8)], max_new_tokens=4)
    fresh = session.generate(
        "What is it?", [np.full((140, 60, 3), 127, np.uint8)], max_new_tokens=4
    )
    assert held.token_ids == fresh.token_ids


def test_one_tile_and_several_go_together(tmp_path: Path) -> None:
    """Tiles of one are not joined; those of several are. A picture takes the layout that is its own."""
    path = tiny.internvl(tmp_path / "internvl")
    for number, sizes in enumerate((((48, 48), (60, 140)), ((60, 140), (48, 48)))):
        options: dict[str, Any] = {"image_size": sizes[0], "more_sizes": sizes[1:]}
        bundle = build_tiny(path, tmp_path / str(number), 1.0, **options).directory
        parts = read_manifest(bundle).budgets[0].layouts
        joined = {part.layout: part.packer is not None for part in parts}
        assert sorted(joined.values()) == [False, True]
        session = Session.open(bundle, device="cpu")
        for size in sizes:
            answer = session.generate("What?", [np.zeros((*size, 3), np.uint8)], max_new_tokens=1)
            assert answer.letterboxed == ()


def check_several(session: Session) -> None:
    """Pictures of one request have one layout: their common one, or the first."""
    wide, tall = (np.full((*size, 3), 127, np.uint8) for size in SIZES)
    names = [each.name for each in session.bundle.manifest.layouts]
    layouts = [session.layout(pictures) for pictures in ([tall, tall], [tall, wide])]
    found = [None if each is None else each.name for each in layouts]
    assert found == (["multi", "multi"] if "multi" in names else [names[1], names[0]])
