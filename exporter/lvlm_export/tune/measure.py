"""Finalists as real bundles on this machine, asked by turns, so that noise meets all alike."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from lvlm_export.bundle.build import build
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions
from lvlm_export.tune.asking import PictureQuestions
from lvlm_export.tune.space import TrialPlan
from lvlm_runtime.image.picture import load_image
from lvlm_runtime.progress import Progress
from lvlm_runtime.session import Session

# Rounds that are counted, and those before them that are not.
ROUNDS, WARM_UP = 15, 3


def bundle_name(plan: TrialPlan) -> str:
    """A directory's name for a trial.

    Example:
        >>> from lvlm_export.tune.space import Trial
        >>> bundle_name(TrialPlan(Trial("tome+fastv", 0.33, share=0.85), None, None))
        'tome_fastv_0.33_share_0.85'
    """
    return re.sub(r"[^\w.]+", "_", plan.trial.name)


def measure_bundles(
    checkpoint: Checkpoint,
    model: str,
    plans: Sequence[TrialPlan],
    pictures: Sequence[PictureQuestions],
    options: BuildOptions,
    directory: Path,
    progress: Progress,
) -> dict[str, float]:
    """Median time to first token in ms by the trial's name.

    Args:
        checkpoint: The model.
        model: Its name.
        plans: What to build and measure.
        pictures: What is asked, one after another.
        options: Of every build but for method, ratio and placement.
        directory: Where the bundles go; those of the same options that are there are used.
        progress: Told about every build and round.

    Raises:
        LvlmError: A bundle cannot be built.
    """
    sessions = {}
    for plan in plans:
        trial, path = plan.trial, directory / bundle_name(plan)
        chosen = BuildOptions(
            ratios=(trial.ratio,),
            baseline=False,
            method=trial.method,
            seed=options.seed,
            image_size=options.image_size,
            placement=trial.placement,
        )
        build(checkpoint, model, chosen, path, progress, force=True)
        sessions[trial.name] = Session.open(path)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    names = list(sessions)
    with progress.stage("measuring", ROUNDS + WARM_UP) as advance:
        for number in range(ROUNDS + WARM_UP):
            asked = pictures[number % len(pictures)]
            image = load_image(asked.picture)
            first = number % len(names)
            for name in (*names[first:], *names[:first]):
                answer = sessions[name].generate(
                    asked.questions[0].question, [image], max_new_tokens=1
                )
                if number >= WARM_UP:
                    times[name].append(answer.time_to_first_token_ms)
            advance(f"round {number + 1}")
    return {name: statistics.median(each) for name, each in times.items()}
