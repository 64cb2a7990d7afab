"""Methods inside the whole chain against PyTorch with the same reducer inside the HF model.

A few that take every way through the chain run by default; all of them are marked slow.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from helpers import build_tiny
from lvlm_export.check.parity import synthetic_samples, verify
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_export.reduction import METHODS, load_method
from lvlm_runtime.session import Session

# The two that take most from the chain: text and keys in the decoder, sizes beside the tokens.
WAYS = [
    ("dart", "llava", (0.33,)),
    ("tome", "llava", (0.33,)),
]
# Slow, and with the ratios that only they have: no token left and sites that differ by ratio, features
# with a CLS token and in packed tiles, tokens before the decoder with text, smaller pictures.
MORE_WAYS = [
    pytest.param(*way, marks=pytest.mark.slow)
    for way in (
        ("vtw", "llava", (0.5, 0.33)),
        ("visionzip", "llava", (0.33,)),
        ("visionzip", "onevision", (0.33,)),
        ("cdpruner", "llava", (0.33,)),
        ("downsample", "llava", (0.33,)),
    )
]
# Checkpoints of tests/support/tiny.py, and the size of the picture that a bundle is for.
FAMILIES = {
    "gemma3": None,
    "internvl": (60, 140),
    "llava": None,
    "llava_next": (77, 140),
    "onevision": (100, 140),
    "paligemma": None,
}
# Those that lay a tile's tokens out as a square.
GRIDS = ("llava_next", "onevision")
WITHOUT_CLS = ("gemma3", "onevision", "paligemma")
GROUPS = ("gemma3", "internvl")
# Of four decoder layers, one is the least that visual tokens can stay for.
ALL = [
    pytest.param(name, family, (0.5, 0.33, 0.25 if name == "vtw" else 0.1), marks=pytest.mark.slow)
    for name in METHODS
    for family in FAMILIES
    if name not in ("none", "illava", "random")
    and not (load_method(name).appends and family in GRIDS)
    and not (load_method(name).needs_cls and family in WITHOUT_CLS)
    and not (load_method(name).keeps_square and family in GROUPS)
]


@pytest.mark.parametrize(("method", "family", "ratios"), [*WAYS, *MORE_WAYS, *ALL])
def test_chain_equals_pytorch(
    method: str, family: str, ratios: tuple[float, ...], tmp_path: Path
) -> None:
    options = {"method": method, "image_size": FAMILIES[family]}
    # A method with a limit by the model's width needs a model as wide as real ones.
    wide = family in GRIDS and load_method(method).needs_rank
    path = getattr(tiny, family)(tmp_path / family, **({"text_width": 288} if wide else {}))
    result = build_tiny(path, tmp_path / "bundle", *ratios, **options)
    checkpoint = Checkpoint.open(path)
    plan = make_plan(checkpoint, BuildOptions(ratios, **options))
    session = Session.open(result.directory, device="cpu")
    samples = synthetic_samples(plan.shape.layouts, 2, seed=5)
    report = verify(session, checkpoint, plan, samples, 8, lambda _step: None)
    assert {row.ratio for row in report.stages} == {*ratios, 1.0}
    assert max(row.error for row in report.stages) < 2e-4
    assert [row for row in report.answers if not row.passed] == []
