"""A near tie is not a fault, and a fault is not a near tie."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from command_line import typed
from helpers import tiny_options
from lvlm_export.check import parity
from lvlm_export.check.parity import synthetic_samples, verify
from lvlm_export.check.parity_report import ParityReport
from lvlm_export.check.ties import Tie
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import Plan, make_plan
from lvlm_runtime.backends import Backend, Runner, Value
from lvlm_runtime.chain.loaded import LoadedGraphs
from lvlm_runtime.golden import NEAR
from lvlm_runtime.session import Session

RATIOS = (0.5, 0.33)


class Changed:
    """A runner whose outputs are changed on the way."""

    def __init__(
        self, runner: Runner, backend: Backend, change: Callable[[dict[str, np.ndarray]], None]
    ) -> None:
        self.outputs = runner.outputs
        self.cache_limit = runner.cache_limit
        self.runner, self.backend, self.change = runner, backend, change

    def __call__(
        self, feeds: Mapping[str, Value], bound: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        out = {
            name: self.backend.fetch(value).copy()
            for name, value in self.runner(feeds, bound).items()
        }
        self.change(out)
        return {name: self.backend.put(value) for name, value in out.items()}

    def cache_rows(self, wanted: int) -> int:
        return self.runner.cache_rows(wanted)


def noise_on(name: str, size: float) -> Callable[[dict[str, np.ndarray]], None]:
    """Adds noise to an output, the same at every call."""

    def change(outputs: dict[str, np.ndarray]) -> None:
        value = outputs[name]
        outputs[name] = value + size * np.random.default_rng(0).standard_normal(
            value.shape, dtype=np.float32
        )

    return change


@pytest.fixture(scope="module")
def opened(tiny_llava: Path) -> tuple[Session, Checkpoint, Plan]:
    checkpoint = Checkpoint.open(tiny_llava / "checkpoint")
    session = Session.open(tiny_llava / "bundle", device="cpu")
    return session, checkpoint, make_plan(checkpoint, tiny_options(*RATIOS))


def compare(
    opened: tuple[Session, Checkpoint, Plan],
    graph: str,
    change: Callable[[dict[str, np.ndarray]], None],
) -> ParityReport:
    """A verification of the chain with one graph's outputs changed."""
    session, checkpoint, plan = opened
    graphs = session.chain.graphs
    changed = Changed(graphs.runner(graph), session.chain.backend, change)
    samples = synthetic_samples(plan.shape.layouts, 2, seed=5)
    with graphs.replaced({graph: changed}):
        return verify(session, checkpoint, plan, samples, 8, lambda _step: None)


def subgraph_before(session: Session, stage: str) -> tuple[str, str]:
    """File of the first subgraph with a site after it, and the site."""
    stages = getattr(session.bundle.manifest, stage)
    found = next(each for each in stages if each.site is not None)
    return found.graph, found.site


@pytest.mark.parametrize("stage", ["vision", "decoder"])
def test_other_choices_between_near_scores_are_ties_and_all_behind_is_compared(
    opened: tuple[Session, Checkpoint, Plan], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that are far apart here stand for near ones: the limit is moved, not the arithmetic."""
    graph, site = subgraph_before(opened[0], stage)
    monkeypatch.setitem(parity.NEAR, "float32", 1.0)
    report = compare(opened, graph, noise_on("query", 2.0))
    assert report.passed
    tied = [tie for tie in report.ties if tie.place == site]
    assert tied
    assert all(NEAR["float32"] >= tie.gap > 1e-5 for tie in tied)
    # With PyTorch's choice the states behind the site agree as if there had been no tie.
    assert max(row.error for row in report.stages) < 1e-4
    reference = [row for row in report.answers if row.got != row.expected]
    assert reference == []


@pytest.mark.parametrize("stage", ["vision", "decoder"])
def test_other_choices_between_scores_that_differ_are_a_fault(
    opened: tuple[Session, Checkpoint, Plan], stage: str
) -> None:
    graph, site = subgraph_before(opened[0], stage)
    report = compare(opened, graph, noise_on("query", 2.0))
    assert not report.passed
    words = f"{site} at ratio .* is no near tie: its scores differ by .* of the largest"
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(report.failure())


@pytest.mark.parametrize("limit", [1e-4, 1.0])
def test_a_reducer_that_is_not_its_module_is_a_fault(
    opened: tuple[Session, Checkpoint, Plan], limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However near the scores are said to be."""
    session = opened[0]
    monkeypatch.setitem(parity.NEAR, "float32", limit)
    reduction = session.bundle.budget(0.5).vision[0]

    def turn(outputs: dict[str, np.ndarray]) -> None:
        outputs["hidden_out"] = np.flip(outputs["hidden_out"], axis=1).copy()
        outputs["places"] = np.flip(outputs["places"], axis=1).copy()

    report = compare(opened, reduction.graph, turn)
    assert not report.passed
    assert report.ties == ()
    assert f"{reduction.site} at ratio 0.5 differs from PyTorch" in report.failure()


def swap_first_two(outputs: dict[str, np.ndarray]) -> None:
    """The second best token becomes the best."""
    for row in outputs["logits"]:
        second, first = np.argsort(row)[-2:]
        row[first], row[second] = row[second], row[first]


def test_tokens_of_near_logits_are_ties_and_others_are_faults(
    opened: tuple[Session, Checkpoint, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    (head,) = opened[0].bundle.manifest.lm_head
    # The first logits are a stage of their own, with a limit of its own.
    monkeypatch.setitem(parity.LIMITS, "float32", 10.0)
    refused = compare(opened, head, swap_first_two)
    assert "token 0 at ratio" in refused.failure() or "is no near tie" in refused.failure()
    assert not refused.passed
    monkeypatch.setitem(parity.NEAR, "float32", 10.0)
    passed = compare(opened, head, swap_first_two)
    assert passed.passed
    row = passed.answers[0]
    assert row.expected != row.got
    assert len(row.ties) == len(row.expected)


def test_a_tie_is_near_up_to_its_limit() -> None:
    near, far = (Tie(0.5, 0, "vision@2", 1, gap, 1e-4) for gap in (9e-5, 2e-4))
    assert (near.passed, far.passed) == (True, False)


@pytest.mark.slow
def test_a_build_with_a_near_tie_is_published_and_verified(
    opened: tuple[Session, Checkpoint, Plan],
    tiny_llava: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The chain chooses otherwise than PyTorch at its first site, by the same noise in both commands."""
    graph, site = subgraph_before(opened[0], "vision")
    runner = LoadedGraphs.runner

    def noisy(graphs: LoadedGraphs, name: str) -> Runner:
        found = runner(graphs, name)
        return Changed(found, graphs.backend, noise_on("query", 2.0)) if name == graph else found

    monkeypatch.setattr(LoadedGraphs, "runner", noisy)
    monkeypatch.setitem(parity.NEAR, "float32", 1.0)
    words = ("--ratio", "0.5", "--no-baseline", "--model", tiny_llava / "checkpoint")
    built = typed("build", *words, "-o", tmp_path / "bundle")
    assert built.exit_code == 0, built.stderr
    found = typed("verify", tmp_path / "bundle", "--samples", "1")
    assert found.exit_code == 0, found.stderr
    _, title, ties = found.stdout.partition("near tie at")
    assert title
    assert site in ties
    assert re.search(r"but for \d+ near ties \(scores within", found.stdout)
