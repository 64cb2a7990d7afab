"""What makes two builds the same bundle."""

from __future__ import annotations

from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.demo import CHECKPOINT
from lvlm_export.plan.plan import BuildOptions, make_plan


def key(*ratios: float, **options: object) -> str:
    """The content key of a build of the demo model."""
    plan = make_plan(Checkpoint.open(CHECKPOINT), BuildOptions(ratios, **options))  # type: ignore[arg-type]
    return plan.key


def test_options_that_say_the_same_are_the_same_bundle() -> None:
    same = key(0.33)
    assert key(0.33, 1.0) == key(0.33, 1.0, baseline=False) == key(0.33, 0.33) == same
    assert key(0.33, target="cpu", precision="fp32", dialect="opset24") == same


def test_options_that_change_the_bundle_change_its_key() -> None:
    others = [
        key(0.5),
        key(0.33, baseline=False),
        key(1.0, 0.33),  # the first is the default of `run`
        key(0.33, method="fastv"),
        key(0.33, precision="fp16"),
        key(0.33, seed=1),
    ]
    assert len({key(0.33), *others}) == len(others) + 1
