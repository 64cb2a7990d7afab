"""``make demo``: build, ask, check, and a small table. ``python -m lvlm_export.demo.show``.

Every step is a command of the command line, printed before it runs; only the table at the end is
this module's own.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from lvlm_export.demo import PICTURES
from lvlm_export.demo.curve import CurvePoint, measure_curve, stage_text
from lvlm_export.demo.questions import evaluation_set
from lvlm_export.study.evaluation import wilson_interval
from lvlm_profiles.processes import python_command
from lvlm_profiles.readers import load_json
from lvlm_profiles.statistics import paired_change
from lvlm_runtime import Session

RATIOS = (1.0, 0.33)
DEFAULT_QUESTIONS = 500
# Other pictures than those of the table, by which methods were chosen.
SEED = 1
console = Console()


def run_command(*words: str) -> None:
    """Show a command and run it in a process of its own; the demo stops where it fails."""
    console.print(
        f"\n[bold]$ lvlm-export {shlex.join(words)}[/bold]", highlight=False, soft_wrap=True
    )
    status = subprocess.run(python_command("lvlm_export", *words), check=False).returncode
    if status:
        raise SystemExit(status)


def build_bundle(path: Path, ratios: Sequence[float]) -> Path:
    """Build the demo model at these ratios by the default method; the command always adds 1.0."""
    options = [word for ratio in ratios if ratio != 1.0 for word in ("--ratio", f"{ratio:g}")]
    run_command("build", *options, "--output", str(path))
    return path


def ask_questions(bundle: Path) -> None:
    """One question about each example picture, at 0.33."""
    entries = load_json(PICTURES / "questions.json")
    by_picture: dict[str, list[dict[str, str]]] = {}
    for entry in entries:
        by_picture.setdefault(entry["image"], []).append(entry)
    for index, (name, questions) in enumerate(by_picture.items()):
        # Another kind of question for every picture.
        entry = questions[index % len(questions)]
        picture = str(_short(PICTURES / name))
        run_command("run", str(bundle), "--image", picture, "--ratio", "0.33", entry["question"])
        console.print(f"(right answer: {entry['answer']})", style="dim")


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def draw_table(points: Sequence[CurvePoint], questions: int) -> Table:
    """The table at the end."""
    table = Table(title=f"demo model, {questions} questions about pictures it never saw")
    for column in ("ratio kept", "visual tokens", "first token", "by FLOPs", "accuracy"):
        table.add_column(column, justify="right" if column != "visual tokens" else "left")
    for point in points:
        right = point.accuracy["all"]
        low, high = wilson_interval(right.right, right.total)
        table.add_row(
            f"{point.ratio:g}",
            stage_text(point.stages),
            f"{point.first_token_ms:.1f} ms",
            "" if point.flops_share is None else f"{point.flops_share:.2f}",
            f"{right.share:.1%} ({low:.1%} to {high:.1%})",
        )
    return table


def summary(method: str, whole: CurvePoint, reduced: CurvePoint) -> str:
    """What the reduction costs and saves, the same questions compared in pairs."""
    change = paired_change(whole.right, reduced.right)
    measured, flops = reduced.first_token_share, reduced.flops_share
    assert measured is not None
    assert flops is not None
    return (
        f"{method} at {reduced.ratio:g} loses {-100 * change.change:.1f} points (95 % interval"
        f" {-100 * change.high:.1f} to {-100 * change.low:.1f}; {change.lost} answers lost,"
        f" {change.won} won); the first token takes {flops:.2f} of the FLOPs and, on this machine,"
        f" {measured:.2f} of the time"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--questions", type=int, default=DEFAULT_QUESTIONS)
    parser.add_argument(
        "--seed", type=int, default=SEED, help="of the pictures; make demo-table asks those of 0"
    )
    parser.add_argument("--bundle", type=Path, default=Path("build/demo"))
    options = parser.parse_args(arguments)
    bundle = build_bundle(options.bundle, RATIOS)
    ask_questions(bundle)
    run_command("verify", str(bundle))
    samples = evaluation_set(options.questions, options.seed)
    session = Session.open(bundle)
    watched = track(
        samples, "asking every question at every ratio", console=console, transient=True
    )
    whole, reduced = measure_curve(session, RATIOS, watched)
    console.print()
    console.print(draw_table((whole, reduced), len(samples)))
    method = session.bundle.manifest.method
    console.print(summary(method, whole, reduced), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
