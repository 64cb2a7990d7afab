"""Accuracy of the demo model over ratio and method: ``python -m lvlm_export.demo.table``.

Builds one bundle per method at all ratios, asks every question at every ratio through the ONNX
chain, and writes the table as JSON beside this file, from which ``make readme`` fills the README. ``make
demo-table`` runs it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_export.demo import DEMO_DIR
from lvlm_export.demo.evaluate import DEFAULT_QUESTIONS, Accuracy, score
from lvlm_export.demo.questions import Sample, evaluation_set
from lvlm_runtime import Session

RATIOS = (1.0, 0.75, 0.5, 0.33, 0.2, 0.1)
METHODS = ("illava", "random", "uniform")
RESULT = DEMO_DIR / "curve.json"
# The longest answer of the task ("bottom middle") is a few tokens; a stop token ends it.
ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Point:
    """One budget's result.

    Attributes:
        ratio: Share of visual tokens kept.
        stages: Visual tokens at each stage.
        accuracy: Per kind of question and, last, "all".
        first_token_ms: Median time to first token, all budgets interleaved in one run.
    """

    ratio: float
    stages: tuple[tuple[str, int], ...]
    accuracy: dict[str, Accuracy]
    first_token_ms: float


def measure(
    session: Session,
    ratios: Sequence[float],
    samples: Iterable[Sample],
) -> list[Point]:
    """Ask every question at every ratio, the ratios in turn so that noise hits all alike."""
    asked: list[Sample] = []
    answers: dict[float, list[str]] = {ratio: [] for ratio in ratios}
    first: dict[float, list[float]] = {ratio: [] for ratio in ratios}
    stages: dict[float, tuple[tuple[str, int], ...]] = {}
    for sample in samples:
        asked.append(sample)
        for ratio in ratios:
            result = session.generate(
                sample.question, [sample.image], ratio, max_new_tokens=ANSWER_TOKENS
            )
            answers[ratio].append(result.text)
            first[ratio].append(result.time_to_first_token_ms)
            stages[ratio] = result.visual_tokens
    return [
        Point(ratio, stages[ratio], score(asked, answers[ratio]), statistics.median(first[ratio]))
        for ratio in ratios
    ]


def stage_text(stages: Sequence[tuple[str, int]]) -> str:
    """Token counts along the chain: ``196 > 162 > 128 > 94 > 65``, equal neighbours once."""
    counts = [count for _, count in stages]
    kept = [count for i, count in enumerate(counts) if i == 0 or count != counts[i - 1]]
    return " > ".join(map(str, kept))


def as_json(curves: dict[str, list[Point]], questions: int) -> dict[str, Any]:
    """The whole result with where it was measured."""
    import onnxruntime

    return {
        "questions": questions,
        "machine": {"processor": _processor(), "python": platform.python_version()},
        "onnxruntime": onnxruntime.__version__,
        "curves": {
            method: [
                {
                    "ratio": point.ratio,
                    "visual_tokens": [list(stage) for stage in point.stages],
                    "first_token_ms": round(point.first_token_ms, 2),
                    "accuracy": {
                        kind: [hits.right, hits.total] for kind, hits in point.accuracy.items()
                    },
                }
                for point in points
            ]
            for method, points in curves.items()
        },
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Accuracy over ratio, one column per method, and who wins."""
    methods = list(result["curves"])
    by_ratio = {
        method: {point["ratio"]: point for point in points}
        for method, points in result["curves"].items()
    }
    lines = [
        f"| ratio kept | visual tokens | {' | '.join(methods)} |",
        f"|---:|---|{'---:|' * len(methods)}",
    ]
    for ratio, point in by_ratio[methods[0]].items():
        shares = []
        for method in methods:
            right, total = by_ratio[method][ratio]["accuracy"]["all"]
            shares.append(f"{right / total:.1%}")
        text = stage_text([tuple(stage) for stage in point["visual_tokens"]])
        lines.append(f"| {ratio:g} | {text} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--questions", type=int, default=DEFAULT_QUESTIONS)
    parser.add_argument("--bundles", type=Path, default=Path("bundles"))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)

    from rich.progress import track

    from lvlm_export.demo.show import build_bundle

    samples = evaluation_set(options.questions, seed=0)
    curves = {}
    for method in METHODS:
        bundle = build_bundle(options.bundles / f"demo-{method}", RATIOS, method)
        session = Session.open(bundle, device="cpu", threads=options.threads)
        watched = track(samples, description=f"{method}, {len(RATIOS)} ratios")
        curves[method] = measure(session, RATIOS, watched)
    result = as_json(curves, len(samples))
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(result))


if __name__ == "__main__":
    main()
