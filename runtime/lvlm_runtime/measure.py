"""Timing the chain: one record per graph call, on a monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Span:
    """One graph call.

    Attributes:
        name: Graph or step.
        phase: ``preprocess``, ``vision``, ``prefill`` or ``decode``.
        duration_ms: Wall time.
        tokens: Tokens that entered it.
    """

    name: str
    phase: str
    duration_ms: float
    tokens: int


@dataclass
class Recorder:
    """Collects spans; pass one to a call that should be measured.

    Attributes:
        spans: What was timed, in order.
        on_stage: Called with the name and the result of every graph call of the prefill, outside
            the timed blocks; verification looks at hidden states through it.
        on_places: Called with a site's name and the places ``[B, K]`` that its reducer kept;
            not where nothing stays.
    """

    spans: list[Span] = field(default_factory=list)
    on_stage: Callable[[str, Any], None] | None = None
    on_places: Callable[[str, Any], None] | None = None

    def show(self, name: str, value: Any) -> None:
        """Hand a graph's result to ``on_stage``."""
        if self.on_stage is not None:
            self.on_stage(name, value)

    def show_places(self, site: str, outputs: Mapping[str, Any]) -> None:
        """Hand a reducer's places to ``on_places``."""
        if self.on_places is not None and "places" in outputs:
            self.on_places(site, outputs["places"])

    @contextmanager
    def span(self, name: str, phase: str, tokens: int) -> Iterator[None]:
        """Time the block."""
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            self.spans.append(Span(name, phase, (time.perf_counter_ns() - start) / 1e6, tokens))

    def total_ms(self, *phases: str) -> float:
        """Time in the graph calls of these phases."""
        return sum(span.duration_ms for span in self.spans if span.phase in phases)
