"""Trials as tasks of Ray: on the machines of a cluster, or as processes of this one.

A task is a share of the trials and some pictures. Trials that begin alike stay together, so that a task
still computes once what they have in common; every process loads the model once. The checkpoint and
the picture files lie under the same paths on all machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from lvlm_export.tune.asking import Asker, AskOptions, Outcome, PictureQuestions
from lvlm_export.tune.branches import Effort
from lvlm_export.tune.space import ModelFit, Trial, TrialPlan
from lvlm_runtime.errors import LvlmError

# A task with fewer trials saves too little by what they share.
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
        self._ray: Any = ray
        self.directory, self.options = directory.absolute(), options
        if not ray.is_initialized():
            ray.init(log_to_driver=False, configure_logging=False)
        self._task = ray.remote(num_cpus=1)(ask_share)

    def ask(self, plans: Sequence[TrialPlan], pictures: Sequence[PictureQuestions]) -> Outcome:
        """As of ``Asker``."""
        trials = [plan.trial for plan in plans]
        workers = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        shares = shares_of(len(trials), workers)
        tasks = [
            self._task.remote(
                self.directory, self.options, [trials[number] for number in share], pictures
            )
            for share in shares
        ]
        try:
            outcomes: list[Outcome] = self._ray.get(tasks)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, LvlmError):
                raise error.cause from None
            raise
        effort, right = Effort(), dict[int, tuple[bool, ...]]()
        for share, outcome in zip(shares, outcomes, strict=True):
            effort.add(outcome.effort)
            right.update(zip(share, outcome.right, strict=True))
        return Outcome(tuple(right[number] for number in range(len(trials))), effort)


def shares_of(trials: int, workers: int) -> list[range]:
    """Runs of neighbouring trials, as many as there are workers unless they would get too short.

    Example:
        >>> [len(each) for each in shares_of(100, 3)]
        [34, 33, 33]
    """
    parts = max(1, min(workers, trials // LEAST_TRIALS))
    bounds = [-(-trials * part // parts) for part in range(parts + 1)]
    return [range(first, last) for first, last in pairwise(bounds)]
