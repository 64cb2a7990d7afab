"""Latency of the weighted subgraphs over their token count, on made-up tokens.

Latency over tokens is stepped on real devices; a budget just below a step is worth more than one
just above it. Vision subgraphs take any count after the first reduction site, decoder subgraphs
any count of a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from lvlm_profiles.report import knee
from lvlm_profiles.report.figures import Sweep, SweepPoint
from lvlm_runtime.backends import Value
from lvlm_runtime.bundle.manifest import GRID, SEEN_FROM, SEEN_TO, Subgraph
from lvlm_runtime.chain.visible import first_in_window, seen_before
from lvlm_runtime.chain.vision import grid_rows
from lvlm_runtime.session import Session

# Token counts per curve, and timed calls per count after one that is not counted.
POINTS, CALLS = 16, 5


def sweep_subgraphs(session: Session, say: Callable[[str], None]) -> tuple[Sweep, ...]:
    """One curve per subgraph that takes tokens; other requests wait until all are measured."""
    with session.chain.turns.turn():
        return _sweep(session, say)


def _sweep(session: Session, say: Callable[[str], None]) -> tuple[Sweep, ...]:
    manifest = session.bundle.manifest
    curves = []
    for stage in manifest.vision[1:]:
        say(f"sweep of {stage.name}")
        curves.append(_curve(stage.name, manifest.vision_tokens, _vision_call(session, stage)))
    full = max(part.tokens_full for budget in manifest.budgets for part in budget.layouts)
    longest = min(full + 64, manifest.text.context_length - 1)
    for stage in manifest.decoder:
        say(f"sweep of {stage.name}")
        curves.append(_curve(stage.name, longest, _decoder_call(session, stage)))
    return tuple(curves)


def token_counts(longest: int, points: int) -> tuple[int, ...]:
    """Evenly spaced counts up to the longest."""
    return tuple(sorted({max(1, round(longest * i / points)) for i in range(1, points + 1)}))


def _curve(name: str, longest: int, make: Callable[[int], Callable[[], None]]) -> Sweep:
    counts = token_counts(longest, POINTS)
    calls = {count: make(count) for count in counts}
    samples: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(CALLS + 1):
        for count, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                samples[count].append((time.perf_counter() - start) * 1e3)
    points = tuple(
        SweepPoint(count, tuple(each), median(each), min(each)) for count, each in samples.items()
    )
    least = [point.least_ms for point in points]
    # Other programs can only delay a call: the least is the truest, the second tells how true.
    noise = [sorted(point.samples_ms)[1] - point.least_ms for point in points]
    curve = knee.envelope(least)
    bend = knee.knee(counts, curve, median(noise))
    return Sweep(name, points, bend, knee.steps(counts, curve, noise))


def _vision_call(session: Session, stage: Subgraph) -> Callable[[int], Callable[[], None]]:
    runner = session.chain.runner(stage.graph)

    def make(count: int) -> Callable[[], None]:
        feeds = _vision_feeds(session, stage, count)
        return lambda: _finish(session, runner(feeds))

    return make


def _vision_feeds(session: Session, stage: Subgraph, count: int) -> dict[str, Value]:
    """Made-up tokens, each one patch or group of its own, from the picture's first on."""
    manifest, chain = session.bundle.manifest, session.chain
    width = manifest.group * manifest.dims.vision.width
    known = {"hidden": _tokens(session, count, width)}
    if "sizes" in stage.inputs:
        known["sizes"] = chain.backend.put(np.ones((1, count), chain.graphs.dtype))
    if manifest.grid is not None:
        places = grid_rows(1, manifest.grid)[:, :count]
        known[GRID] = chain.backend.put(np.ascontiguousarray(places))
    return {name: known[name] for name in stage.inputs}


def _decoder_call(session: Session, stage: Subgraph) -> Callable[[int], Callable[[], None]]:
    chain, manifest = session.chain, session.bundle.manifest
    runner = chain.runner(stage.graph)

    def make(count: int) -> Callable[[], None]:
        hidden = _tokens(session, count, manifest.text.hidden_size)
        rows = manifest.text.position_rows
        positions = chain.backend.put(np.tile(np.arange(count, dtype=np.int64), (rows, 1)))
        group = chain.decoder.allocate(stage, count)
        beside = {name: chain.decoder.planes.nothing(count) for name in stage.planes}
        if SEEN_TO in stage.inputs:
            beside[SEEN_TO] = chain.backend.put(seen_before(0, count))
        if SEEN_FROM in stage.inputs:
            at = np.arange(count, dtype=np.int64)
            first = first_in_window(at[:0], at, manifest.text.window)
            beside[SEEN_FROM] = chain.backend.put(first)

        def call() -> None:
            caches, bound = group.bind(count, chain.backend)
            feeds = {**caches, "hidden": hidden, "position_ids": positions, **beside}
            _finish(session, runner(feeds, bound))

        return call

    return make


def _tokens(session: Session, count: int, width: int) -> Value:
    values = np.random.default_rng(0).standard_normal((1, count, width))
    return session.chain.backend.put(values.astype(session.chain.graphs.dtype))


def _finish(session: Session, outputs: dict[str, Value]) -> None:
    """Wait for the device: one output comes to the host."""
    session.chain.backend.fetch(next(iter(outputs.values())))
