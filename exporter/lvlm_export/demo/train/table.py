"""Accuracy of the demo model over ratio and method: ``python -m lvlm_export.demo.train.table``.

Builds one bundle per method at all ratios, asks every question at every ratio through the ONNX
chain, and writes the table as JSON beside this file, from which ``make readme`` fills the README.
``make demo-table`` runs it. Methods run side by side, one per core, each with one thread. Results
are kept per method with the machine that measured them, so ``--method`` measures one again and leaves
the others.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_export.demo import CHECKPOINT, DEMO_DIR
from lvlm_export.demo.curve import CurvePoint, measure_curve
from lvlm_export.demo.questions import evaluation_set
from lvlm_export.reduction import METHODS
from lvlm_profiles.files import write_whole
from lvlm_runtime import Session
from lvlm_runtime.errors import UsageError
from lvlm_runtime.progress import NoProgress

if TYPE_CHECKING:
    from lvlm_export.plan.plan import BuildOptions

QUESTIONS = 2000
RATIOS = (0.75, 0.5, 0.33, 0.2, 0.1)
RESULT = DEMO_DIR / "curve.json"
BASELINE = "random"
UNREDUCED = "none"


def measure_method(method: str, bundles: Path, questions: int) -> list[CurvePoint]:
    """Build a bundle of one method and ask it every question, on one thread.

    Raises:
        UsageError: The method does not fit the model, or cannot reach a ratio.
    """
    from lvlm_export.plan.plan import BuildOptions

    ratios = (1.0,) if method == UNREDUCED else RATIOS
    options = BuildOptions(ratios=ratios, method=method, baseline=False)
    return ask_all(CHECKPOINT, options, bundles / f"demo-{method}", questions)


def ask_all(
    checkpoint: Path, options: BuildOptions, bundle: Path, questions: int
) -> list[CurvePoint]:
    """Build a bundle of a checkpoint and ask every question at all its ratios, on one thread.

    Raises:
        UsageError: The method does not fit the model, or cannot reach a ratio.
    """
    from lvlm_export.bundle.build import build
    from lvlm_export.checkpoint.checkpoint import Checkpoint

    opened = Checkpoint.open(checkpoint)
    build(opened, "demo", options, bundle, NoProgress(), verify_samples=1, force=True)
    session = Session.open(bundle, device="cpu", threads=1)
    return measure_curve(session, options.ratios, evaluation_set(questions, seed=0))


def measure_all(methods: Sequence[str], bundles: Path, questions: int, output: Path) -> None:
    """Measure methods side by side, and write after each."""
    from rich.progress import Progress

    workers = os.cpu_count() or 1
    work = partial(measure_method, bundles=bundles, questions=questions)
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        Progress() as progress,
    ):
        bar = progress.add_task("measuring methods", total=len(methods))
        running = {pool.submit(work, method): method for method in methods}
        for done in as_completed(running):
            method = running[done]
            try:
                add_curve(output, questions, method, done.result())
            except UsageError as reason:
                add_refusal(output, questions, method, str(reason))
            progress.update(bar, advance=1, description=f"{method} done")


def add_curve(path: Path, questions: int, method: str, points: Sequence[CurvePoint]) -> None:
    """Put one method's points into the result file."""
    result = read_result(path, questions)
    result["refused"].pop(method, None)
    result["machines"][method] = this_machine()
    result["curves"][method] = [
        {
            "ratio": point.ratio,
            "visual_tokens": [list(stage) for stage in point.stages],
            "first_token_ms": round(point.first_token_ms, 2),
            "accuracy": {kind: [hits.right, hits.total] for kind, hits in point.accuracy.items()},
        }
        for point in points
    ]
    write_result(path, result)


def add_refusal(path: Path, questions: int, method: str, reason: str) -> None:
    """Put into the result file the reason why a method does not fit."""
    result = read_result(path, questions)
    result["curves"].pop(method, None)
    result["machines"].pop(method, None)
    result["refused"][method] = reason
    write_result(path, result)


def read_result(path: Path, questions: int) -> dict[str, Any]:
    """What is in the file, or an empty result where it is of other weights, versions or counts.

    Answers are the machine's that gave them, but for times: each method notes its own.
    """
    head = head_of(questions)
    if path.exists():
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if all(result.get(key) == value for key, value in head.items()):
            return result
    return {**head, "machines": {}, "curves": {}, "refused": {}}


def head_of(questions: int) -> dict[str, Any]:
    """What a result depends on: question count, weights and versions."""
    import onnxruntime

    from lvlm_export.checkpoint.checkpoint import Checkpoint

    return {
        "questions": questions,
        "checkpoint": Checkpoint.open(CHECKPOINT).content_key(),
        "onnxruntime": onnxruntime.__version__,
    }


def this_machine() -> dict[str, str]:
    """What a result's times, and nothing else of it, are of."""
    return {"processor": _processor(), "python": platform.python_version()}


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Methods in the order of their names, so that runs differ only where results do."""
    for part in ("machines", "curves", "refused", "training_free"):
        if part in result:
            result[part] = dict(sorted(result[part].items()))
    write_whole(path, json.dumps(result, indent=1) + "\n")


def as_markdown(result: dict[str, Any]) -> str:
    """Accuracy, one row per method, best first; a mark where random has more right answers."""
    curves = {name: accuracy_by_ratio(points) for name, points in result["curves"].items()}
    full = curves.pop(UNREDUCED)[1.0]
    random = curves[BASELINE]
    ordered = sorted(curves, key=lambda name: -sum(curves[name].values()))
    ratios = list(random)
    lines = [
        f"| method | {' | '.join(f'{ratio:g}' for ratio in ratios)} |",
        f"|---|{'---:|' * len(ratios)}",
        f"| unreduced (1.0) | {' | '.join([f'{full:.1%}'] * len(ratios))} |",
    ]
    for name in ordered:
        cells = [
            f"{curves[name][ratio]:.1%}{' ↓' if curves[name][ratio] < random[ratio] else ''}"
            for ratio in ratios
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def accuracy_by_ratio(points: Sequence[dict[str, Any]]) -> dict[float, float]:
    """Right answers over all kinds as a share, per ratio."""
    return {
        point["ratio"]: point["accuracy"]["all"][0] / point["accuracy"]["all"][1]
        for point in points
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--bundles", type=Path, default=Path("bundles"))
    parser.add_argument("--method", action="append", choices=sorted(METHODS), help="default: all")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    methods = options.method or list(METHODS)
    measure_all(methods, options.bundles, options.questions, options.output)
    print(as_markdown(read_result(options.output, options.questions)))


if __name__ == "__main__":
    main()
