"""What it costs and gives that the decoder counts token sizes: the demo with and without, by turns.

    python benchmarks/token_sizes.py [--rounds 20]
    python benchmarks/token_sizes.py --method anchors --questions 2000

Builds two bundles of one method at 0.33 that differ in ``sizes_in_decoder`` alone. Without
``--questions``: the time of a decode step, on one thread, one step of either by turns, so that what else
the machine does falls on both alike; the result is the median of the pairs' ratios with its interval. The
aim is 1 % at most, and a run ends with 1 when it is missed. With it: both answer the same questions, and
the change is paired (McNemar's exact test).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from copy import copy
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from lvlm_export.bundle.build import build
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.demo import CHECKPOINT
from lvlm_export.demo.questions import evaluation_set
from lvlm_export.plan.plan import BuildOptions
from lvlm_export.reduction import METHODS, method_entry
from lvlm_profiles.statistics import median_change, paired_change
from lvlm_runtime import Session
from lvlm_runtime.chain.decoder import DecodeState
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.progress import NoProgress
from lvlm_runtime.request import check_request
from report import RESULTS, WORK, environment, print_environment, save

RATIO = 0.33
STEPS = 96
# Of a step's time.
AIM = 0.01
COUNTED, NOT_COUNTED = "counted", "not_counted"


def main() -> int:
    """Measure, print, save; 1 when the aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="local", choices=sorted(tracking()))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--questions", type=int, help="ask so many instead of timing steps")
    options = parser.parse_args()
    sessions = {name: open_demo(options.method, name == COUNTED) for name in (COUNTED, NOT_COUNTED)}
    where = environment()
    print_environment(where)
    if options.questions:
        keep(options.method, "answers", {**ask(sessions, options.questions), "environment": where})
        return 0
    cost = time_steps(sessions, options.rounds)
    keep(options.method, "step", {**cost, "environment": where})
    return int(cost["cost"] > AIM)


def tracking() -> list[str]:
    """Methods that know sizes when tokens enter the decoder."""
    return [name for name in METHODS if method_entry(name).tracks_size]


def open_demo(name: str, counts: bool) -> Session:
    """A method's bundle of the demo, whose decoder counts sizes or not."""
    method = copy(method_entry(name))
    method.sizes_in_decoder = counts
    variant = f"{name}_{COUNTED if counts else NOT_COUNTED}"
    setattr(sys.modules[__name__], variant, method)
    METHODS[variant] = f"{__name__}:{variant}"
    options = BuildOptions((RATIO,), method=variant, baseline=False)
    output = WORK / f"token-sizes-{variant}"
    checkpoint = Checkpoint.open(CHECKPOINT)
    build(checkpoint, "demo", options, output, NoProgress(), verify_samples=1, force=True)
    return Session.open(output, device="cpu", threads=1)


def begin(session: Session) -> DecodeState:
    """A question about a picture in the caches, with room for an answer."""
    picture = np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8)
    silent, ids = Recorder(), session.encoder.encode("What is there?", 1)
    request = check_request(session.bundle, ids, [picture], None, 1 + STEPS, silent)
    assert request.pixel_values is not None
    assert request.part is not None
    chain = session.chain
    visual = chain.encode(request.pixel_values, request.budget, request.part, silent, None)
    state, _ = chain.prefill(request.runs, visual, request.part, 1 + STEPS, silent)
    return state


def time_steps(sessions: dict[str, Session], rounds: int) -> dict[str, Any]:
    """Steps of both by turns, every second time in the other order; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    silent = Recorder()
    for turn in range(-1, rounds):
        states = {name: begin(session) for name, session in sessions.items()}
        for step in range(STEPS):
            for name in sorted(sessions, reverse=step % 2 == 0):
                start = time.perf_counter()
                sessions[name].chain.step(states[name], 5, silent)
                if turn >= 0:
                    times[name].append(1e3 * (time.perf_counter() - start))
    pairs = zip(times[COUNTED], times[NOT_COUNTED], strict=True)
    ratios = [one / other for one, other in pairs]
    change = median_change([1.0] * len(ratios), ratios, resamples=300)
    print(
        f"a step: {median(times[COUNTED]):.3f} ms, {change.change:+.2%} ({change.low:+.2%} to"
        f" {change.high:+.2%}) of one that counts no sizes; {len(ratios)} pairs"
    )
    return {
        "cost": round(change.change, 5),
        "interval": [round(change.low, 5), round(change.high, 5)],
        "aim": AIM,
        "pairs": len(ratios),
        "step_ms": {name: round(median(each), 4) for name, each in times.items()},
    }


def ask(sessions: dict[str, Session], questions: int) -> dict[str, Any]:
    """The same questions to both."""
    right: dict[str, list[bool]] = {name: [] for name in sessions}
    for sample in evaluation_set(questions, seed=0):
        for name, session in sessions.items():
            answer = session.generate(sample.question, [sample.image], max_new_tokens=16).text
            right[name].append(answer.strip() == sample.answer)
    change = paired_change(right[NOT_COUNTED], right[COUNTED])
    print(
        f"{sum(right[NOT_COUNTED]) / questions:.2%} without sizes, {sum(right[COUNTED]) / questions:.2%}"
        f" with: {change.change:+.2%} ({change.low:+.2%} to {change.high:+.2%}), p {change.p:.2g}"
    )
    return {"right": {name: sum(hits) for name, hits in right.items()}, **asdict(change)}


def keep(method: str, part: str, content: dict[str, Any]) -> Path:
    """Put a result beside those of other methods."""
    path = RESULTS / "token_sizes.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept.setdefault(method, {})[part] = {"ratio": RATIO, **content}
    return save("token_sizes", dict(sorted(kept.items())))


if __name__ == "__main__":
    sys.exit(main())
