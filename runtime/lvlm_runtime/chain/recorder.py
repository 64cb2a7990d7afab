"""Timing the chain: one record per graph call and per step of the host, on a monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lvlm_runtime.backends import Runner, Value
from lvlm_runtime.backends.clock import Clock, HostClock


@dataclass(frozen=True)
class Span:
    """One graph call, or one step of the host.

    Attributes:
        name: Graph or step.
        phase: ``preprocess``, ``vision``, ``prefill`` or ``decode``.
        duration_ms: Wall time.
        tokens: Tokens that entered it.
        started_ns: On the host's clock; orders graph calls and steps.
    """

    name: str
    phase: str
    duration_ms: float
    tokens: int
    started_ns: int = 0


@dataclass(frozen=True)
class Timing:
    """All calls of one graph, or of one step of the host, in one phase of a request.

    Attributes:
        name: Graph or step.
        phase: ``preprocess``, ``vision``, ``prefill`` or ``decode``.
        calls: How many.
        total_ms: Wall time of all of them.
    """

    name: str
    phase: str
    calls: int
    total_ms: float


@dataclass(frozen=True)
class Reduced:
    """One call of a reducer.

    Attributes:
        runner: The reducer; it may be called again, with other values.
        inputs: What it took, by name.
        outputs: What it gave; ``places [B, K]`` unless nothing stays.
    """

    runner: Runner
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]


@dataclass
class Recorder:
    """Collects spans; pass one to a call that should be measured.

    Attributes:
        spans: Graph calls, and the preparation of pictures, in order.
        steps: The host's own work: tokenize, embedding, sample, detokenize.
        clock: What times graph calls.
        on_stage: Called with the name and the result of every graph call, those of decoding included,
            outside the timed blocks; verification reads hidden states and logits there.
        on_reduction: Called with a site's name and what its reducer took and gave, before anything
            runs that could write there.
    """

    spans: list[Span] = field(default_factory=list)
    on_stage: Callable[[str, Any], None] | None = None
    on_reduction: Callable[[str, Reduced], None] | None = None
    steps: list[Span] = field(default_factory=list)
    clock: Clock = field(default_factory=HostClock)

    def show(self, name: str, value: Any) -> None:
        """Hand a graph's result to ``on_stage``."""
        if self.on_stage is not None:
            self.on_stage(name, value)

    def show_reduction(self, site: str, reduced: Reduced) -> None:
        """Hand what a reducer took and gave to ``on_reduction``."""
        if self.on_reduction is not None:
            self.on_reduction(site, reduced)

    @contextmanager
    def span(self, name: str, phase: str, tokens: int) -> Iterator[None]:
        """Time a graph call."""
        started, mark = time.perf_counter_ns(), self.clock.start()
        try:
            yield
        finally:
            self.spans.append(Span(name, phase, self.clock.stop(mark), tokens, started))

    @contextmanager
    def step(self, name: str, phase: str, tokens: int) -> Iterator[None]:
        """Time a step of the host."""
        started = time.perf_counter_ns()
        try:
            yield
        finally:
            duration = (time.perf_counter_ns() - started) / 1e6
            self.steps.append(Span(name, phase, duration, tokens, started))

    def total_ms(self, *phases: str, since: float = 0.0) -> float:
        """Time in the graph calls of these phases, from a moment on ``time.perf_counter`` on."""
        first_ns = int(since * 1e9)
        return sum(
            span.duration_ms
            for span in self.spans
            if span.phase in phases and span.started_ns >= first_ns
        )

    def in_order(self) -> list[Span]:
        """Graph calls and steps as they began."""
        return sorted((*self.spans, *self.steps), key=lambda span: span.started_ns)

    def timings(self, since: float) -> tuple[Timing, ...]:
        """What began since a moment on ``time.perf_counter``, each graph and step in one line."""
        first_ns = int(since * 1e9)
        found: dict[tuple[str, str], list[float]] = {}
        for span in self.in_order():
            if span.started_ns >= first_ns:
                found.setdefault((span.name, span.phase), []).append(span.duration_ms)
        return tuple(
            Timing(name, phase, len(each), sum(each)) for (name, phase), each in found.items()
        )
