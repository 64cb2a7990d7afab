"""Accuracy of the demo model over ratio and method: ``python -m lvlm_export.demo.train.table``.

Builds one bundle per method at all ratios, asks every question at every ratio through the ONNX
chain, and writes the table as JSON beside this file, from which ``make readme`` fills the README.
``make demo-table`` runs it. Methods run side by side, one per core, each with one thread. Results
are kept per method with the machine that measured them, so ``--method`` measures one again and leaves
the others. Every question's answer is kept as right or wrong, so that methods are compared in pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_export.demo import CHECKPOINT, DEMO_DIR
from lvlm_export.demo.curve import AskedSample, CurvePoint, measure_curve
from lvlm_export.demo.questions import KINDS, evaluation_set
from lvlm_export.reduction import METHODS
from lvlm_profiles.files import write_whole
from lvlm_profiles.statistics import PairedChange, paired_change
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
# The ratio whose losses and times are shown in full.
SHOWN = 0.33
# Every so many-th question is asked unreduced too, for the share of its time.
COMPARE_EVERY = 10


def measure_method(method: str, bundles: Path, questions: int) -> list[CurvePoint]:
    """Build a bundle of one method and ask it every question, on one thread.

    Raises:
        UsageError: The method does not fit the model, or cannot reach a ratio.
    """
    from lvlm_export.plan.plan import BuildOptions

    ratios = (1.0,) if method == UNREDUCED else RATIOS
    options = BuildOptions(ratios=ratios, method=method)
    samples = evaluation_set(questions, seed=0)
    return ask_all(CHECKPOINT, options, bundles / f"demo-{method}", samples, COMPARE_EVERY)


def ask_all(
    checkpoint: Path,
    options: BuildOptions,
    bundle: Path,
    samples: Sequence[AskedSample],
    compare_every: int = 0,
) -> list[CurvePoint]:
    """Build a bundle of a checkpoint and ask every question at its ratios, on one thread.

    Args:
        checkpoint: A Hugging Face directory.
        options: Of the build; their ratios are asked.
        bundle: Where it is built.
        samples: The questions.
        compare_every: As ``measure_curve`` has it.

    Raises:
        UsageError: The method does not fit the model, or cannot reach a ratio.
    """
    from lvlm_export.bundle.build import build
    from lvlm_export.checkpoint.checkpoint import Checkpoint

    opened = Checkpoint.open(checkpoint)
    build(opened, "demo", options, bundle, NoProgress(), verify_samples=1, force=True)
    session = Session.open(bundle, device="cpu", threads=1)
    return measure_curve(session, options.ratios, samples, compare_every)


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
            "first_token_share": rounded(point.first_token_share),
            "flops_share": rounded(point.flops_share),
            "right": pack(point.right),
            "accuracy": {kind: [hits.right, hits.total] for kind, hits in point.accuracy.items()},
        }
        for point in points
    ]
    write_result(path, result)


def rounded(share: float | None) -> float | None:
    """To four digits, which is more than a measured one has."""
    return None if share is None else round(share, 4)


def pack(right: Sequence[bool]) -> str:
    """Right and wrong answers in hexadecimal digits, four a digit."""
    bits = "".join("01"[hit] for hit in right)
    return f"{int(bits + '0' * (-len(bits) % 4), 2):0{-(-len(bits) // 4)}x}"


def unpack(digits: str, questions: int) -> list[bool]:
    """What ``pack`` packed."""
    return [bit == "1" for bit in f"{int(digits, 16):0{4 * len(digits)}b}"[:questions]]


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


def head_of(questions: int, checkpoint: Path = CHECKPOINT) -> dict[str, Any]:
    """What a result depends on: question count, weights and versions."""
    import onnxruntime

    from lvlm_export.checkpoint.checkpoint import Checkpoint

    return {
        "questions": questions,
        "checkpoint": Checkpoint.open(checkpoint).content_key(),
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
    """Accuracy per ratio, and at 0.33 what is lost and what the first token takes; best first.

    A mark where random has more right answers.
    """
    curves = {name: accuracy_by_ratio(points) for name, points in result["curves"].items()}
    full = curves.pop(UNREDUCED)[1.0]
    random = curves[BASELINE]
    ratios = list(random)
    lines = [
        f"| method | {' | '.join(f'{ratio:g}' for ratio in ratios)} | lost at {SHOWN:g} | to"
        f" `{BASELINE}` | FLOPs | time |",
        f"|---|{'---:|' * (len(ratios) + 4)}",
        f"| unreduced (1.0) | {' | '.join([f'{full:.1%}'] * len(ratios))} | | | 1 | 1 |",
    ]
    for name in best_first(curves):
        cells = [
            f"{curves[name][ratio]:.1%}{' ↓' if curves[name][ratio] < random[ratio] else ''}"
            for ratio in ratios
        ]
        point = point_at(result, name, SHOWN)
        lost, gained = changes(result, name, SHOWN)
        cells += [points_text(lost, -1), "" if name == BASELINE else points_text(gained, 1)]
        cells += [f"{point['flops_share']:.2f}", f"{point['first_token_share']:.2f}"]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def kinds_as_markdown(result: dict[str, Any]) -> str:
    """Accuracy per kind of question at 0.33, in the order of ``as_markdown``."""
    curves = {name: accuracy_by_ratio(points) for name, points in result["curves"].items()}
    del curves[UNREDUCED]
    lines = [f"| method | {' | '.join(KINDS)} | all |", f"|---|{'---:|' * (len(KINDS) + 1)}"]
    for name in (UNREDUCED, *best_first(curves)):
        counts = point_at(result, name, 1.0 if name == UNREDUCED else SHOWN)["accuracy"]
        shares = [f"{right / total:.1%}" for right, total in counts.values()]
        shown = "unreduced (1.0)" if name == UNREDUCED else f"`{name}`"
        lines.append(f"| {shown} | {' | '.join(shares)} |")
    return "\n".join(lines)


def best_first(curves: Mapping[str, Mapping[float, float]]) -> list[str]:
    """Methods by accuracy over all ratios."""
    return sorted(curves, key=lambda name: -sum(curves[name].values()))


def point_at(result: dict[str, Any], method: str, ratio: float) -> dict[str, Any]:
    """A method's result at a ratio."""
    point: dict[str, Any]
    (point,) = (each for each in result["curves"][method] if each["ratio"] == ratio)
    return point


def changes(result: dict[str, Any], method: str, ratio: float) -> tuple[PairedChange, PairedChange]:
    """From the unreduced answers to a method's, and from those of random tokens."""

    def right(name: str, at: float) -> list[bool]:
        return unpack(point_at(result, name, at)["right"], result["questions"])

    after = right(method, ratio)
    return (
        paired_change(right(UNREDUCED, 1.0), after),
        paired_change(right(BASELINE, ratio), after),
    )


def points_text(change: PairedChange, sign: int) -> str:
    """A change in points with half its 95 % interval: ``1.3 ± 0.9``."""
    return f"{100 * sign * change.change:.1f} ± {50 * (change.high - change.low):.1f}"


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
    result = read_result(options.output, options.questions)
    if {UNREDUCED, BASELINE} <= result["curves"].keys():
        print(as_markdown(result))


if __name__ == "__main__":
    main()
