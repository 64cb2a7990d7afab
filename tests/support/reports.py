"""Reports for tests, made of given samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lvlm_profiles.report import KIND, SCHEMA, Caution, Report
from lvlm_profiles.report.figures import (
    Accuracy,
    BudgetFigures,
    Energy,
    MemoryFigures,
    Metric,
    Predicted,
    StageTime,
    StageTokens,
    Sweep,
    SweepPoint,
    WallCheck,
)
from lvlm_profiles.report.subject import Image, Machine, Model, Protocol, Request, Startup
from lvlm_profiles.statistics import summarize

# Time to first token per ratio, ms; 1.0 is twice as slow as 0.33.
TTFT = {
    1.0: (200.0, 204.0, 196.0, 202.0, 198.0, 201.0),
    0.33: (100.0, 102.0, 98.0, 101.0, 99.0, 100.0),
}
MODEL = Model(
    name="demo",
    revision=None,
    family="llava",
    method="illava",
    seed=0,
    precision="float32",
    target="cpu",
    content_key="c" * 64,
    checkpoint_key="d" * 64,
    weights_bytes=12_900_000,
    built_with={"torch": "2.13"},
    graphs={"vision.0.onnx": "e" * 64},
    dims={"vision": {"layers": 4}},
)
MACHINE = Machine(
    fingerprint="0123456789ab",
    processor="Some CPU",
    board=None,
    accelerator=None,
    cores=2,
    memory_bytes=8_000_000_000,
    system="Some Linux",
    driver=None,
    power_mode=None,
    clocks={"cpu policy0": "performance, 800 to 3000 MHz"},
    libraries={"onnxruntime": "1.31"},
    backend="onnxruntime",
    execution="cpu",
    threads=None,
)


def metric(values: Sequence[float]) -> Metric:
    """Samples with their statistics."""
    return Metric(tuple(values), summarize(values))


def make_budget(ratio: float, ttft_ms: Sequence[float], **changes: Any) -> BudgetFigures:
    """A budget whose stages are 0.6 vision, 0.3 decoder and 0.1 host of the first token."""
    parts = {
        ("preprocess", "preprocess"): 0.05,
        ("vision", "vision.0"): 0.55,
        ("vision", "vision@2"): 0.05,
        ("prefill", "decoder.0"): 0.25,
        ("prefill", "host"): 0.1,
    }
    stages = [
        StageTime(
            name,
            phase,
            196,
            tuple(part * v for v in ttft_ms),
            summarize([part * v for v in ttft_ms]),
        )
        for (phase, name), part in parts.items()
    ]
    decode = (4.0,) * len(ttft_ms)
    stages.append(StageTime("decoder.0", "decode", 1, decode, summarize(decode)))
    kept = round(196 * ratio)
    budget = BudgetFigures(
        ratio=ratio,
        achieved=kept / 196,
        visual_tokens=(StageTokens("vision", 196), StageTokens("decoder", kept)),
        path={"method": "illava", "cuts": []},
        prompt_tokens=218,
        first_request_ms=2 * ttft_ms[0],
        ttft_ms=metric(ttft_ms),
        tpot_ms=metric(decode),
        tokens_per_s=metric([250.0] * len(ttft_ms)),
        end_to_end_ms=metric([value + 124 for value in ttft_ms]),
        stages=tuple(stages),
        wall_check=WallCheck((ttft_ms[0] * 1.01,), (ttft_ms[0],), 0.01),
        memory=MemoryFigures(
            "resident", 111_000_000, 120_000_000, 60_000_000, 30_000_000, 1_000_000, 20_000_000
        ),
        energy=None,
        accuracy=None,
        predicted=Predicted(4e9 * ratio, 1 / ratio, None, None, None),
    )
    return replace(budget, **changes)


def make_report(ttft: Mapping[float, Sequence[float]] = TTFT, **changes: Any) -> Report:
    """A report of some budgets."""
    report = Report(
        kind=KIND,
        schema=SCHEMA,
        created="2026-01-02T03:04:05+00:00",
        tool="lvlm-export 0.1.0",
        model=MODEL,
        machine=MACHINE,
        request=Request("What?", 22, (Image("a.png", 64, 48, "f" * 64),), "image", 1, 32),
        protocol=Protocol(6, 3, "3 rounds, as asked", True, "interleaved", "host clock", 12.5),
        startup=Startup(180.0, 1.0, 400.0, 524.0),
        reference=max(ttft),
        budgets=tuple(make_budget(ratio, samples) for ratio, samples in ttft.items()),
        sweeps=(),
        warnings=(),
        not_measured={"energy": "no meter"},
    )
    return replace(report, **changes)


def full_report() -> Report:
    """A report with everything in it."""
    energy = Energy("RAPL package-0", "the processor", 9, 3.0, 2.5, 0.08, 31.0, 9.0, 61.0)
    accuracy = Accuracy(400, 364, 0.91, 0.878, 0.934)
    report = make_report()
    budgets = tuple(replace(b, energy=energy, accuracy=accuracy) for b in report.budgets)
    points = tuple(
        SweepPoint(n, (n * 0.1, n * 0.11), n * 0.105, n * 0.1) for n in range(16, 161, 16)
    )
    return replace(
        report,
        budgets=budgets,
        sweeps=(Sweep("vision.1", points, 96, (128,)), Sweep("decoder.0", points, None, ())),
        warnings=(Caution("other_load", "load average was 3.10 on 2 cores <before> the run"),),
        not_measured={},
    )
