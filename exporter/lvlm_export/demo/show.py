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
from lvlm_profiles.processes import python_command
from lvlm_profiles.readers import load_json
from lvlm_runtime import Session

RATIOS = (1.0, 0.33)
DEFAULT_QUESTIONS = 500
console = Console()


def run_command(*words: str) -> None:
    """Show a command and run it in a process of its own; the demo stops where it fails."""
    console.print(
        f"\n[bold]$ lvlm-export {shlex.join(words)}[/bold]", highlight=False, soft_wrap=True
    )
    status = subprocess.run(python_command("lvlm_export", *words), check=False).returncode
    if status:
        raise SystemExit(status)


def build_bundle(path: Path, ratios: Sequence[float], method: str = "illava") -> Path:
    """Build the demo model at these ratios; 1.0 is always added by the command."""
    options = [word for ratio in ratios if ratio != 1.0 for word in ("--ratio", f"{ratio:g}")]
    run_command("build", *options, "--method", method, "--output", str(path))
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
    for column in ("ratio kept", "visual tokens", "first token", "accuracy"):
        table.add_column(column, justify="right" if column != "visual tokens" else "left")
    for point in points:
        table.add_row(
            f"{point.ratio:g}",
            stage_text(point.stages),
            f"{point.first_token_ms:.1f} ms",
            f"{point.accuracy['all'].share:.1%}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--questions", type=int, default=DEFAULT_QUESTIONS)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/demo"))
    options = parser.parse_args(arguments)
    bundle = build_bundle(options.bundle, RATIOS)
    ask_questions(bundle)
    run_command("verify", str(bundle))
    samples = evaluation_set(options.questions, seed=0)
    session = Session.open(bundle)
    watched = track(
        samples, "asking every question at every ratio", console=console, transient=True
    )
    points = measure_curve(session, RATIOS, watched)
    console.print()
    console.print(draw_table(points, len(samples)))


if __name__ == "__main__":
    main()
