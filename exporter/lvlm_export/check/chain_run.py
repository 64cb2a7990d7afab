"""A request through the chain as the parity gate watches it: hidden states, reducers, answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_runtime.backends import Backend, Runner, Value
from lvlm_runtime.bundle.route import Step, route
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.image.picture import Picture
from lvlm_runtime.request import check_request, layout_for
from lvlm_runtime.session import ARGMAX, Session

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ParitySample:
    """A request to compare: pictures and a question."""

    images: tuple[Image.Image, ...]
    question: str


@dataclass
class ReducerCall:
    """What a reducer's graph took and gave, by name, on the host."""

    feeds: Arrays
    outputs: Arrays


@dataclass
class ChainRun:
    """What the chain did with a request.

    Attributes:
        hidden: Hidden states of the prefill, by stage or site.
        calls: Of the reducers, by site, in order.
        answer: Tokens of the answer.
    """

    hidden: Arrays = field(default_factory=dict)
    calls: dict[str, ReducerCall] = field(default_factory=dict)
    answer: tuple[int, ...] = ()


def reducer_steps(session: Session, ratio: float, images: Sequence[Picture]) -> tuple[Step, ...]:
    """The reducers that a request passes, in order."""
    manifest = session.bundle.manifest
    budget, layout = session.bundle.budget(ratio), layout_for(manifest, images)
    if layout is None:
        return ()
    steps = route(manifest, budget, budget.layout(layout.name))
    return tuple(step for step in steps if step.kind == "reducer")


def run_chain(
    session: Session,
    ratio: float,
    sample: ParitySample,
    max_new_tokens: int,
    given: Mapping[str, Arrays],
) -> ChainRun:
    """Ask the chain, and watch it.

    Args:
        session: The bundle, loaded.
        ratio: The budget.
        sample: The request.
        max_new_tokens: Longest answer.
        given: What the reducers of some sites give in place of their own outputs.
    """
    run = ChainRun()

    def keep(name: str, value: Value) -> None:
        if name not in run.hidden:
            run.hidden[name] = session.chain.backend.fetch(value)

    with session.chain.graphs.replaced(_watched(session, ratio, sample.images, given, run)):
        answer = session.generate(
            sample.question,
            sample.images,
            ratio,
            max_new_tokens=max_new_tokens,
            sampling=ARGMAX,
            recorder=Recorder(on_stage=keep),
        )
    run.answer = answer.token_ids
    return run


def logits_along(
    session: Session,
    ratio: float,
    sample: ParitySample,
    answer: Sequence[int],
    given: Mapping[str, Arrays],
) -> list[NDArray[np.float32]]:
    """The chain's logits ``[vocab]`` before each token of an answer that is given to it."""
    silent, chain = Recorder(), session.chain
    ids = session.encoder.encode(sample.question, len(sample.images))
    query_ids = session.encoder.question(sample.question)
    request = check_request(session.bundle, ids, sample.images, ratio, len(answer), silent)
    assert request.pixel_values is not None
    assert request.part is not None
    watched = _watched(session, ratio, sample.images, given, ChainRun())
    # One turn for all of it: a request in between would be answered by the watched reducers.
    with chain.turns.turn(), chain.graphs.replaced(watched):
        visual = chain.encode(request.pixel_values, request.budget, request.part, silent, query_ids)
        state, logits = chain.prefill(request.runs, visual, request.part, len(answer), silent)
        found = [logits.copy()]
        for token in answer[:-1]:
            found.append(chain.step(state, token, silent).copy())
    return found


def _watched(
    session: Session,
    ratio: float,
    images: Sequence[Picture],
    given: Mapping[str, Arrays],
    run: ChainRun,
) -> dict[str, Runner]:
    """File -> a runner that notes its calls in ``run``."""
    sites: dict[str, list[str]] = {}
    for step in reducer_steps(session, ratio, images):
        sites.setdefault(step.graph, []).append(step.name)
    graphs = session.chain.graphs
    return {
        graph: _WatchedRunner(graphs.runner(graph), session.chain.backend, names, given, run)
        for graph, names in sites.items()
    }


class _WatchedRunner:
    """A reducer's runner that notes what it takes and gives, or gives what it is told to.

    Args:
        runner: The real one.
        backend: Whose values it takes.
        sites: Names of the sites that it is called for, in order.
        given: Outputs in place of its own, by site.
        run: Where calls are noted.
    """

    def __init__(
        self,
        runner: Runner,
        backend: Backend,
        sites: Sequence[str],
        given: Mapping[str, Arrays],
        run: ChainRun,
    ) -> None:
        self.outputs = runner.outputs
        self._runner, self._backend = runner, backend
        self._sites, self._given, self._run = list(sites), given, run
        self.cache_limit = runner.cache_limit

    def __call__(
        self, feeds: Mapping[str, Value], bound: Mapping[str, Value] | None = None
    ) -> dict[str, Value]:
        site = self._sites.pop(0)
        fetch = self._backend.fetch
        taken = {name: fetch(value) for name, value in feeds.items()}
        if site in self._given:
            out = {name: self._backend.put(array) for name, array in self._given[site].items()}
        else:
            out = self._runner(feeds, bound)
        outputs = {name: fetch(value) for name, value in out.items()}
        self._run.calls[site] = ReducerCall(taken, outputs)
        return out

    def cache_rows(self, wanted: int) -> int:
        return self._runner.cache_rows(wanted)
