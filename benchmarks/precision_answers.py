"""What weights of few bits cost the demo in answers: the same questions at every precision, by turns.

    python benchmarks/precision_answers.py [--questions 2000] [--precision int8 --precision int4]

Builds a bundle of the demo checkpoint at each precision with ratios 1.0 and 0.33 and asks all of them
every question. Right answers are counted, and against float32 at the same ratio: answers that are the
same, questions won and lost (McNemar's exact test), and the Kullback-Leibler divergence of the first
token's distribution.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_export.bundle.build import build
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.demo import CHECKPOINT
from lvlm_export.demo.curve import ANSWER_TOKENS
from lvlm_export.demo.questions import evaluation_set
from lvlm_export.plan.plan import BuildOptions
from lvlm_export.plan.weight_formats import parse_precision
from lvlm_profiles.statistics import paired_change
from lvlm_runtime import Session
from lvlm_runtime.bundle.bundle import WEIGHTS
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.progress import NoProgress
from report import WORK, environment, print_environment, print_table, save

RATIOS = (1.0, 0.33)
FULL = "fp32"
PRECISIONS = ("int8", "int4", "int4,vision=int4")


@dataclass
class Answers:
    """What a bundle said at a ratio, one entry per question.

    Attributes:
        texts: Answers.
        right: Whether they are.
        logits: ``[vocab]`` of the first token.
    """

    texts: list[str] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)


def main() -> int:
    """Build, ask, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--precision", action="append", dest="precisions", help="repeatable")
    parser.add_argument("--work", type=Path, default=WORK, help="directory of the bundles")
    options = parser.parse_args()
    names = (FULL, *(options.precisions or PRECISIONS))
    sessions = {name: open_demo(name, options.work) for name in names}
    where = environment()
    print_environment(where)
    found = ask(sessions, options.questions)
    rows = {
        name: {str(ratio): compare(found[FULL, ratio], found[name, ratio]) for ratio in RATIOS}
        for name in names
    }
    sizes = {
        name: each.bundle.manifest.files[WEIGHTS].size_bytes for name, each in sessions.items()
    }
    show(rows, sizes, options.questions)
    content = {"questions": options.questions, "weights_bytes": sizes, "precisions": rows}
    print(f"wrote {save('precision_answers', {**content, 'environment': where})}")
    return 0


def open_demo(precision: str, work: Path) -> Session:
    """The demo's bundle at a precision, built unless it is there."""
    given = parse_precision(precision)
    options = BuildOptions(RATIOS, precision=given.activations, weights=given.weights)
    output = work / f"demo-{precision.replace(',', '-').replace('=', '-')}"
    checkpoint = Checkpoint.open(CHECKPOINT)
    build(checkpoint, "demo", options, output, NoProgress(), verify_samples=1, force=True)
    return Session.open(output, device="cpu", threads=1)


def ask(sessions: dict[str, Session], questions: int) -> dict[tuple[str, float], Answers]:
    """Every question to every bundle at every ratio."""
    found = {(name, ratio): Answers() for name in sessions for ratio in RATIOS}
    for sample in evaluation_set(questions, seed=0):
        for (name, ratio), answers in found.items():
            text, logits = answer(sessions[name], sample.question, sample.image, ratio)
            answers.texts.append(text)
            answers.right.append(text.strip() == sample.answer)
            answers.logits.append(logits)
    return found


def answer(
    session: Session, question: str, image: Any, ratio: float
) -> tuple[str, NDArray[np.float32]]:
    """A greedy answer and the logits of its first token."""
    seen: list[NDArray[np.float32]] = []

    def keep(name: str, value: Any) -> None:
        if name == "lm_head" and not seen:
            seen.append(session.chain.backend.fetch(value).reshape(-1))

    recorder = Recorder(on_stage=keep)
    result = session.generate(
        question, [image], ratio, max_new_tokens=ANSWER_TOKENS, recorder=recorder
    )
    return result.text, seen[0]


def compare(full: Answers, other: Answers) -> dict[str, Any]:
    """One bundle against float32 at the same ratio."""
    change = paired_change(full.right, other.right)
    same = sum(one == two for one, two in zip(full.texts, other.texts, strict=True))
    apart = [divergence(one, two) for one, two in zip(full.logits, other.logits, strict=True)]
    return {
        "right": sum(other.right),
        "same_answers": same,
        "mean_kl": float(np.mean(apart)),
        "largest_kl": float(np.max(apart)),
        "change": asdict(change),
    }


def divergence(logits: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Kullback-Leibler divergence of ``softmax(other)`` from ``softmax(logits)``, in nats."""
    one, two = (each.astype(np.float64) - each.max() for each in (logits, other))
    one, two = (each - np.log(np.exp(each).sum()) for each in (one, two))
    return float((np.exp(one) * (one - two)).sum())


def show(rows: dict[str, dict[str, Any]], sizes: dict[str, int], questions: int) -> None:
    """One line per precision and ratio."""
    cells = [
        (
            name,
            ratio,
            f"{sizes[name] / 1e6:.2f}",
            f"{row['right'] / questions:.2%}",
            f"{row['change']['change']:+.2%} ({row['change']['lost']} lost,"
            f" {row['change']['won']} won)",
            f"{row['same_answers'] / questions:.2%}",
            f"{row['mean_kl']:.2g}",
        )
        for name, by_ratio in rows.items()
        for ratio, row in by_ratio.items()
    ]
    titles = (
        "precision",
        "ratio",
        "weights MB",
        "right",
        "against fp32",
        "same answers",
        "mean KL",
    )
    print_table(f"{questions} questions", titles, cells)


if __name__ == "__main__":
    sys.exit(main())
