"""What a budget per request is worth under load: goodput of a server for three ways to ask.

    python benchmarks/serve_load.py [--loads 0.6 1.2] [--seconds 40] [--rounds 2]

Builds (once) a bundle of a small random checkpoint (``shapes.llava_small_config``) with ratios 1.0, 0.67,
0.5, 0.33 and 0.2, serves it in a process of its own, and sends questions about one picture as an open loop: they
arrive as a Poisson process, whether earlier ones were answered or not. Three ways take turns on the same
arrivals: every request at ratio 1.0, every one at 0.2, and every one with the goal ``ttft_ms``, for which the
server takes the largest ratio that meets it. A load of 1 is as many requests as ratio 1.0 alone could
answer. Goodput is the share of requests whose first event came within the goal, waiting included, as the
client measured it; beside it the mean ratio of those. Every request has a picture of its own, of which nothing
is known. Before the load, by turns: a session in this process asked alone, the server asked the same, and
the server asked about the same picture again.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any

import httpx2 as httpx
from PIL import Image

import shapes
from first_token import picture
from lvlm_profiles.processes import python_command
from lvlm_runtime.remembered import PictureMemory
from lvlm_runtime.session import Session
from report import WORK, environment, print_environment, print_table, save

QUESTION = "What is in the picture?"
RATIOS = (0.67, 0.5, 0.33, 0.2)
METHOD = "illava_v1"
LEAST = 0.2
# The goal, in times to the first token at ratio 1.0 on a server that nobody else asks.
GOAL = 2.0
ANSWER_TOKENS = 4
ALONE = 7
NUMBERS = itertools.count()
MEMORY = 256 << 20
# Aims: what the server adds to a session's first token, and a second question against the first.
AIM_OVERHEAD, AIM_AGAIN = 0.03, 0.1


@dataclass(frozen=True)
class Sample:
    """One request.

    Attributes:
        status: Of HTTP.
        first_ms: To the first event, from the moment of its arrival.
        ratio: That it got; None where it was refused.
    """

    status: int
    first_ms: float
    ratio: float | None


def main() -> int:
    """Measure, print, save; 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.6, 1.2])
    parser.add_argument(
        "--seconds", type=float, default=40.0, help="of arrivals, per way and round"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, help="CPU threads; default one per core")
    options = parser.parse_args()
    bundle = ensure_small_bundle(options.work)
    before = environment()
    session = Session.open(bundle, device="cpu", threads=options.threads)
    session.memory = PictureMemory(MEMORY)
    session.warmup()
    with served(bundle, options.threads) as address:
        found = asyncio.run(measure(address, bundle.name, options, session))
    return report(found, options, before)


def ensure_small_bundle(work: Path) -> Path:
    """The bundle, built unless it is there."""
    from lvlm_export.bundle.build import build
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.plan.plan import BuildOptions
    from lvlm_runtime.progress import NoProgress

    checkpoint = work / "llava-small"
    if not (checkpoint / "text.safetensors").exists():
        shapes.write_llava_small(checkpoint)
    print("building the bundle unless it is there …", flush=True)
    bundle = work / "llava-small-bundle"
    options = BuildOptions(ratios=RATIOS, method=METHOD)
    opened = Checkpoint.open(checkpoint)
    build(opened, "llava-small", options, bundle, NoProgress(), verify_samples=0, force=True)
    return bundle


@contextmanager
def served(bundle: Path, threads: int | None) -> Iterator[str]:
    """The server's address, once it is warm."""
    words = ["serve", str(bundle), "--port", "0", "--device", "cpu"]
    words += ["--queue", "256"] + ([] if threads is None else ["--threads", str(threads)])
    command = python_command("lvlm_export", *words)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = process.stderr.readline().split()[0]
        while httpx.get(f"{address}/ready").status_code != 200:
            time.sleep(0.2)
        # What it says from here on is one line per request.
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        try:
            yield address
        finally:
            process.terminate()
            drain.wait()


async def measure(
    address: str, model: str, options: argparse.Namespace, session: Session
) -> dict[str, Any]:
    """A session, the server beside it, then all loads, rounds and ways."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        alone = {}
        for ratio in (1.0, LEAST):
            asked = [await ask(client, model, {"ratio": ratio}) for _ in range(ALONE)]
            alone[ratio] = median(each.first_ms for each in asked)
        goal = GOAL * alone[1.0]
        service = await whole_ms(client, model)
        beside = await by_turns(client, model, session)
        ways = {
            "ratio 1.0": {"ratio": 1.0},
            f"ratio {LEAST:g}": {"ratio": LEAST},
            "the goal": {"ttft_ms": goal},
        }
        samples: dict[float, dict[str, list[Sample]]] = {}
        for load in options.loads:
            samples[load] = {name: [] for name in ways}
            for number in range(options.rounds):
                times = arrivals(load * 1e3 / service, options.seconds, number)
                for name, fields in ways.items():
                    samples[load][name] += await open_loop(client, model, fields, times)
                    print(
                        f"load {load:g}, round {number + 1}, {name}: {len(times)} asked", flush=True
                    )
    return {
        "alone_ms": alone,
        "service_ms": service,
        "goal_ms": goal,
        "beside_ms": beside,
        "samples": samples,
    }


async def by_turns(
    client: httpx.AsyncClient, model: str, session: Session
) -> dict[str, list[float]]:
    """Milliseconds to the first token: of a session, of the server, and of it asked again."""
    times: dict[str, list[float]] = {"session": [], "server": [], "again": []}
    for _ in range(ALONE):
        body = question(model)
        content = body["messages"]
        own = session.generate(messages=content, ratio=1.0, max_new_tokens=ANSWER_TOKENS)
        times["session"].append(own.time_to_first_token_ms)
        for name in ("server", "again"):
            sample = await ask(client, model, {**body, "ratio": 1.0})
            times[name].append(sample.first_ms)
    return times


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Moments of a Poisson process, in seconds: the same for every way."""
    draw, now, found = random.Random(seed), 0.0, []
    while (now := now + draw.expovariate(rate)) < seconds:
        found.append(now)
    return found


async def open_loop(
    client: httpx.AsyncClient, model: str, fields: dict[str, Any], times: list[float]
) -> list[Sample]:
    """Ask at these moments, and wait for the last answer."""
    start, tasks = time.perf_counter(), []
    for moment in times:
        await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(client, model, fields)))
    return await asyncio.gather(*tasks)


async def ask(client: httpx.AsyncClient, model: str, fields: dict[str, Any]) -> Sample:
    """One question, as a stream."""
    came, first, ratio = time.perf_counter(), None, None
    body = {**({} if "messages" in fields else question(model)), **fields, "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            first = time.perf_counter() if first is None else first
            if line.startswith("data: {"):
                ratio = json.loads(line.removeprefix("data: ")).get("ratio", ratio)
    ended = time.perf_counter() if first is None else first
    return Sample(response.status_code, (ended - came) * 1e3, ratio)


async def whole_ms(client: httpx.AsyncClient, model: str) -> float:
    """How long a whole answer at ratio 1.0 keeps the server from the next."""
    times = []
    for _ in range(ALONE):
        came = time.perf_counter()
        await ask(client, model, {"ratio": 1.0})
        times.append((time.perf_counter() - came) * 1e3)
    return median(times)


@cache
def png() -> bytes:
    """The picture's file."""
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "PNG")
    return file.getvalue()


def question(model: str) -> dict[str, Any]:
    """The body, without its budget; bytes behind a PNG's end make it a picture of its own."""
    content = png() + next(NUMBERS).to_bytes(4, "big")
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    messages = [{"role": "user", "content": parts}]
    return {"model": model, "messages": messages, "max_tokens": ANSWER_TOKENS}


def row(samples: list[Sample], goal: float) -> dict[str, Any]:
    """What came of one way under one load."""
    good = [each for each in samples if each.status == 200 and each.first_ms <= goal]
    answered = sorted(each.first_ms for each in samples if each.status == 200)
    ratios = [each.ratio for each in good if each.ratio is not None]
    return {
        "requests": len(samples),
        "in_time": len(good) / len(samples),
        "refused": sum(each.status != 200 for each in samples) / len(samples),
        "median_ms": median(answered) if answered else None,
        "p90_ms": answered[int(0.9 * (len(answered) - 1))] if answered else None,
        "mean_ratio": mean(ratios) if ratios else None,
    }


def report(found: dict[str, Any], options: argparse.Namespace, before: dict[str, Any]) -> int:
    """Print and save; 1 when an aim is missed."""
    print_environment(before)
    goal, alone = found["goal_ms"], found["alone_ms"]
    rows = {
        load: {name: row(samples, goal) for name, samples in ways.items()}
        for load, ways in found["samples"].items()
    }
    beside = {name: median(times) for name, times in found["beside_ms"].items()}
    overhead = beside["server"] / beside["session"] - 1
    again = beside["again"] / beside["server"]
    print(
        f"first token: session {beside['session']:.0f} ms, server {beside['server']:.0f} ms"
        f" ({100 * overhead:+.1f} %), asked again {beside['again']:.0f} ms ({again:.3f} of it)"
    )
    print(
        f"alone {alone[1.0]:.0f} ms at ratio 1.0, {alone[LEAST]:.0f} ms at {LEAST:g};"
        f" the goal is {goal:.0f} ms"
    )
    columns = ("load, way", "requests", "in time", "refused", "median", "p90", "mean ratio")
    lines = [
        (
            f"{load:g}, {name}",
            str(each["requests"]),
            f"{100 * each['in_time']:.0f} %",
            f"{100 * each['refused']:.0f} %",
            *(
                "" if each[key] is None else f"{each[key]:.0f} ms"
                for key in ("median_ms", "p90_ms")
            ),
            "" if each["mean_ratio"] is None else f"{each['mean_ratio']:.2f}",
        )
        for load, ways in rows.items()
        for name, each in ways.items()
    ]
    print_table("Time to the first token under load", columns, lines)
    content = {
        "before": before,
        "after": environment(),
        "seconds": options.seconds,
        "rounds": options.rounds,
        "alone_ms": {f"{ratio:g}": value for ratio, value in alone.items()},
        "service_ms": found["service_ms"],
        "goal_ms": goal,
        "beside_ms": found["beside_ms"],
        "loads": {f"{load:g}": ways for load, ways in rows.items()},
        "samples": {
            f"{load:g}": {
                name: [asdict(each) for each in samples] for name, samples in ways.items()
            }
            for load, ways in found["samples"].items()
        },
    }
    print(f"wrote {os.path.relpath(save('serve_load', content))}")
    return int(overhead > AIM_OVERHEAD or again > AIM_AGAIN)


if __name__ == "__main__":
    sys.exit(main())
