"""Trials as tasks of Ray: on the machines of a cluster, or as processes of this one.

A task is a share of the trials and some pictures. Trials that begin alike stay together, so that a task
still computes once what they have in common; every process loads the model once. The checkpoint and
the picture files lie under the same paths on all machines.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from lvlm_export.tune.asking import Asker, AskOptions, Outcome, PictureQuestions
from lvlm_export.tune.branches import Effort
from lvlm_export.tune.space import ModelFit, Trial, TrialPlan
from lvlm_runtime.errors import LvlmError

# A task with fewer trials saves too little by what they share, as long as there are others.
LEAST_TRIALS = 8


@cache
def _asker(directory: Path, options: AskOptions) -> tuple[Asker, ModelFit]:
    """The model in a process of Ray, loaded once."""
    from lvlm_export.checkpoint.checkpoint import Checkpoint
    from lvlm_export.plan.fit import geometry_of

    asker = Asker(Checkpoint.open(directory), options)
    shape = asker.shape
    width = shape.text.hidden_size
    return asker, ModelFit(geometry_of(shape), shape.vision.prefix, shape.packed, width)


def ask_share(
    directory: Path,
    options: AskOptions,
    trials: Sequence[Trial],
    pictures: Sequence[PictureQuestions],
) -> Outcome:
    """One task; a trial's counts are made again from its name, which is cheaper than to send them."""
    asker, fit = _asker(directory, options)
    return asker.ask([fit.plan(trial) for trial in trials], pictures)


class RayAsker:
    """As ``Asker``, on Ray.

    Args:
        directory: The checkpoint.
        options: Of all questions.

    Raises:
        LvlmError: Ray is not installed.
    """

    def __init__(self, directory: Path, options: AskOptions) -> None:
        try:
            ray = import_module("ray")
        except ModuleNotFoundError:
            raise LvlmError(
                "--ray needs Ray, which is not installed; pip install 'lvlm-export[ray]', or leave"
                " --ray out"
            ) from None
        # Ray's own environment variable, its only switch; a user's setting stays.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray: Any = ray
        self.directory, self.options = directory.absolute(), options
        if not ray.is_initialized():
            ray.init(log_to_driver=False, configure_logging=False)
        self._task = ray.remote(num_cpus=1)(ask_share)

    def ask(self, plans: Sequence[TrialPlan], pictures: Sequence[PictureQuestions]) -> Outcome:
        """As of ``Asker``."""
        trials = [plan.trial for plan in plans]
        workers = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        shares = shares_of(len(trials), max(1, min(workers, len(trials) // LEAST_TRIALS)))
        # Few trials leave workers free: each share then takes its pictures apart.
        parts = shares_of(len(pictures), max(1, min(len(pictures), workers // len(shares))))
        shown = [self._ray.put(pictures[part.start : part.stop]) for part in parts]
        tasks = [
            self._task.remote(self.directory, self.options, trials[share.start : share.stop], some)
            for share in shares
            for some in shown
        ]
        try:
            outcomes: list[Outcome] = self._ray.get(tasks)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, LvlmError):
                raise error.cause from None
            raise
        effort, right = Effort(), list[tuple[bool, ...]]()
        for first in range(0, len(outcomes), len(parts)):
            of_share = outcomes[first : first + len(parts)]
            for outcome in of_share:
                effort.add(outcome.effort)
            rows = zip(*(outcome.right for outcome in of_share), strict=True)
            right += [tuple(chain.from_iterable(row)) for row in rows]
        return Outcome(tuple(right), effort)


def shares_of(count: int, parts: int) -> list[range]:
    """Numbers from 0 in runs of neighbours whose lengths differ by one at most.

    Example:
        >>> shares_of(10, 3)
        [range(0, 4), range(4, 7), range(7, 10)]
    """
    bounds = [-(-count * part // parts) for part in range(parts + 1)]
    return [range(first, last) for first, last in pairwise(bounds)]
