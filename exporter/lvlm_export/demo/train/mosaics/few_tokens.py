"""QueCC and training-free methods at 16, 4 and 1 visual tokens: what training gains there.

    python -m lvlm_export.demo.train.mosaics.few_tokens DIRECTORY

The directory holds ``quecc-16``, ``quecc-4`` and ``quecc-1``, as ``demo.train_quecc`` writes them
(the demo's README has the commands). Training-free methods take the mosaics' own checkpoint down to
the same counts before the language model. Every question goes through the ONNX chain; the table is
written as JSON beside this file, from which ``make readme`` fills the README.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from lvlm_export.demo.train.model import IMAGE_TOKENS
from lvlm_export.demo.train.mosaics import CHECKPOINT, MOSAICS_DIR
from lvlm_export.demo.train.mosaics.questions import evaluation_set
from lvlm_export.demo.train.mosaics.train_quecc import training_of
from lvlm_export.demo.train.table import QUESTIONS, ask_all, head_of, this_machine, write_result
from lvlm_export.plan.plan import BuildOptions
from lvlm_runtime.bundle.placement import AS_PUBLISHED, HandPlacement
from lvlm_runtime.errors import UsageError

TOKENS = (16, 4, 1)
RESULT = MOSAICS_DIR / "few_tokens.json"
# Methods that act before the language model, and the baselines placed there by hand: at the last
# site of the tower, where the patches have attended each other.
METHODS = {
    "divprune": AS_PUBLISHED,
    "prumerge_plus": AS_PUBLISHED,
    "visprune": AS_PUBLISHED,
    "tome": AS_PUBLISHED,
    "downsample": AS_PUBLISHED,
    "uniform": HandPlacement(sites=("vision@11",)),
    "random": HandPlacement(sites=("vision@11",)),
}


def measure_accuracy(
    checkpoint: Path, options: BuildOptions, bundle: Path, questions: int
) -> list[int]:
    """``[right, total]`` of a bundle of one ratio.

    Raises:
        UsageError: The method cannot reach the ratio.
    """
    (point,) = ask_all(checkpoint, options, bundle, evaluation_set(questions, seed=0))
    return [point.accuracy["all"].right, point.accuracy["all"].total]


def measure_training_free(
    method: str, tokens: int, bundles: Path, questions: int
) -> list[int] | str:
    """Right answers and questions of a method at a token count, or why it does not reach it."""
    ratio = tokens / IMAGE_TOKENS
    options = BuildOptions(
        ratios=(ratio,), method=method, baseline=False, placement=METHODS[method]
    )
    try:
        return measure_accuracy(CHECKPOINT, options, bundles / f"few-{method}", questions)
    except UsageError as reason:
        return str(reason)


def measure_trained(directory: Path, bundles: Path, questions: int) -> dict[str, Any]:
    """Result of a QueCC checkpoint and how it was trained."""
    options = BuildOptions(ratios=(1.0,), method="none", baseline=False)
    return {
        "accuracy": measure_accuracy(directory, options, bundles / directory.name, questions),
        "training": training_of(directory),
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Accuracy, one row per method, best at the most tokens first."""

    def cell(score: Sequence[int] | str) -> str:
        return "-" if isinstance(score, str) else f"{score[0] / score[1]:.1%}"

    counts = [str(tokens) for tokens in TOKENS]
    free = result["training_free"]
    ordered = sorted(free, key=lambda name: -free[name][counts[0]][0])
    quecc = [cell(result["quecc"][count]["accuracy"]) for count in counts]
    return "\n".join(
        [
            f"| method | {' | '.join(counts)} |",
            f"|---|{'---:|' * len(counts)}",
            f"| `quecc`, trained | {' | '.join(quecc)} |",
            *(
                f"| `{name}` | {' | '.join(cell(free[name][count]) for count in counts)} |"
                for name in ordered
            ),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, help="directory of quecc-16, quecc-4, quecc-1")
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--bundles", type=Path, default=Path("bundles"))
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {
        **head_of(options.questions, CHECKPOINT),
        "machine": this_machine(),
        "quecc": {},
        "training_free": {},
    }
    for tokens in track(TOKENS, "quecc"):
        checkpoint = options.directory / f"quecc-{tokens}"
        result["quecc"][str(tokens)] = measure_trained(
            checkpoint, options.bundles, options.questions
        )
    for method in track(METHODS, "training-free methods"):
        result["training_free"][method] = {
            str(tokens): measure_training_free(method, tokens, options.bundles, options.questions)
            for tokens in TOKENS
        }
    write_result(options.output, result)
    print(as_markdown(result))


if __name__ == "__main__":
    main()
