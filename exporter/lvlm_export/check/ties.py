"""A near tie is not a fault: what the gate does where chain and PyTorch choose differently.

Two scores that differ by less than the arithmetic's error have no right order. Where a reducer of
the chain chose otherwise than PyTorch, three things must hold, or the build fails: its graph gives
what the same module gives in PyTorch on the chain's own inputs; where the choices differ, PyTorch's
scores are as near as ``golden.NEAR`` says; and with PyTorch's choices on the chain's inputs the result is
PyTorch's. The chain then goes on from that result, so that what comes after is compared as exactly
as without a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lvlm_export.check.chain_run import Arrays, ReducerCall
from lvlm_export.check.decisions import Decision, Decisions
from lvlm_export.graphs.reducers import Reducer, make_reducer
from lvlm_export.plan.plan import Plan
from lvlm_export.reduction.budget import BudgetPlan, SiteCount
from lvlm_runtime.bundle.manifest import SEQUENCE_MAJOR
from lvlm_runtime.golden import logit_gap


@dataclass(frozen=True)
class Tie:
    """Scores that chain and PyTorch put in another order.

    Attributes:
        ratio: The budget.
        sample: The request.
        place: The reducer's site, or ``token 3`` of the answer.
        differing: Tokens that one of them chose and the other did not; 0 where only their order
            differs.
        gap: Largest difference of PyTorch's scores between what was chosen here and there, relative
            to the largest.
        limit: What is a near tie.
    """

    ratio: float
    sample: int
    place: str
    differing: int
    gap: float
    limit: float

    @property
    def passed(self) -> bool:
        """It is a near tie, and no fault."""
        return self.gap <= self.limit


@dataclass(frozen=True)
class Followed:
    """A reducer's module on the chain's inputs.

    Attributes:
        own: What it gives by its own choices there.
        led: What it gives with the choices of the reference.
        gap: Largest gap between the two choices.
        differing: Tokens that they do not share, of the choice with most of them.
    """

    own: Arrays
    led: Arrays
    gap: float
    differing: int


def site_counts(budget: BudgetPlan, layout: str) -> dict[str, SiteCount]:
    """Site's name -> its tokens, for every reducer of a budget and a tile layout."""
    part = next(part for part in budget.layouts if part.layout == layout)
    projected = () if part.projected is None else (part.projected,)
    counts = (*budget.vision, *projected, *part.decoder)
    return {count.site.name: count for count in counts}


@torch.no_grad()
def follow(
    plan: Plan, count: SiteCount, call: ReducerCall, decisions: Sequence[Decision], kv_layout: str
) -> Followed:
    """Run a site's module in PyTorch on what the chain's graph took there.

    Args:
        plan: How the bundle was built.
        count: The site.
        call: What the graph took.
        decisions: What the reference decided.
        kv_layout: Of the bundle's caches.
    """
    reducer = make_reducer(plan, count)
    feeds = dict(call.feeds)
    if kv_layout == SEQUENCE_MAJOR and "key" in feeds and count.site.stage == "decoder":
        feeds["key"] = feeds["key"].transpose(0, 2, 1, 3)
    # By name: a reducer leaves out what it does not take, whatever stands behind it.
    inputs = {name: torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in reducer.inputs}
    own = _named(reducer, reducer(**inputs))
    if not decisions:
        return Followed(own, own, 0.0, 0)
    with Decisions(decisions) as led:
        outputs = _named(reducer, reducer(**inputs))
    gaps = [tie.gap for tie in led.ties]
    return Followed(
        own, outputs, max(gaps, default=0.0), max((t.places for t in led.ties), default=0)
    )


def _named(reducer: Reducer, outputs: tuple[torch.Tensor, ...]) -> Arrays:
    pairs = zip(reducer.outputs, outputs, strict=True)
    return {name: value.numpy() for name, value in pairs}


def differ(
    got: Arrays, expected: NDArray[np.floating], places: NDArray[np.int64] | None, limit: float
) -> bool:
    """A reducer's outputs keep other places than expected, or differ by more than ``limit``."""
    if places is not None and not np.array_equal(got["places"], places):
        return True
    return relative_error(reduced(got), expected) > limit


def reduced(outputs: Arrays) -> NDArray[np.floating]:
    """The tokens, or the smaller pictures, among a reducer's outputs."""
    names = ("hidden_out", "visual_out", "pixel_values_out")
    return next(outputs[name] for name in names if name in outputs)


def relative_error(got: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """``max |got - expected| / max |expected|``."""
    difference = np.abs(got.astype(np.float32) - expected.astype(np.float32)).max(initial=0.0)
    return float(difference / max(np.abs(expected).max(initial=0.0), 1e-12))


def token_ties(
    ratio: float,
    sample: int,
    expected: Sequence[int],
    logits: Sequence[NDArray[np.float32]],
    chain: Sequence[NDArray[np.float32]],
    limit: float,
) -> list[Tie]:
    """Tokens of an answer that the chain, given the answer so far, would have chosen otherwise.

    Args:
        ratio: The budget.
        sample: The request.
        expected: PyTorch's answer.
        logits: PyTorch's, ``[vocab]`` per token.
        chain: The chain's along the same answer.
        limit: What is a near tie.
    """
    ties = []
    for number, (token, own, others) in enumerate(zip(expected, logits, chain, strict=True)):
        got = int(others.argmax())
        if got != token:
            gap = logit_gap(own, token, got)
            ties.append(Tie(ratio, sample, f"token {number}", 1, gap, limit))
    return ties
