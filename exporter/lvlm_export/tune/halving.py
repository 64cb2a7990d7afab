"""Successive halving: all trials on few questions, the better half on more, the last on all.

Source: K. Jamieson and A. Talwalkar, arXiv:1502.07943. There is more than one best here, since accuracy is
bought with time, so trials are ordered by the front they are on (N. Srinivas and K. Deb, Evolutionary
Computation 2 (1994), 221-248): nobody on the first is beaten in one without being better in the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lvlm_profiles.statistics import paired_change


@dataclass(frozen=True)
class Rung:
    """One step of the halving.

    Attributes:
        questions: Of the search half, from its first on.
        trials: How many are asked them, at most.
    """

    questions: int
    trials: int


@dataclass(frozen=True)
class Standing:
    """A trial in the course of a search.

    Attributes:
        name: Its name.
        cost: What its first token costs.
        right: By question of the search half, as far as it was asked.
        kept: It stays to the end whatever it does, to compare with.
    """

    name: str
    cost: float
    right: tuple[bool, ...]
    kept: bool = False

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)


def make_rungs(trials: int, finalists: int, first: int, questions: int) -> tuple[Rung, ...]:
    """Half of the trials at every step, and questions that grow by one factor.

    Args:
        trials: At the beginning.
        finalists: At the end, at most.
        first: Questions of the first step.
        questions: Of the last step.

    Example:
        >>> [(rung.questions, rung.trials) for rung in make_rungs(32, 8, 50, 200)]
        [(50, 32), (100, 16), (200, 8)]
    """
    counts = [trials]
    while counts[-1] > finalists:
        counts.append(max(finalists, -(-counts[-1] // 2)))
    steps, first = len(counts) - 1, min(first, questions)
    if not steps:
        return (Rung(questions, trials),)
    return tuple(
        Rung(round(first * (questions / first) ** (step / steps)), count)
        for step, count in enumerate(counts)
    )


def front_ranks(points: Mapping[str, tuple[float, float]]) -> dict[str, int]:
    """For ``(cost, accuracy)`` by name, the number of the front that each is on, 0 for the first."""
    left, ranks, rank = dict(points), dict[str, int](), 0
    while left:
        front = [
            name
            for name, own in left.items()
            if not any(beats(other, own) for other in left.values())
        ]
        ranks.update(dict.fromkeys(front, rank))
        left = {name: point for name, point in left.items() if name not in ranks}
        rank += 1
    return ranks


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """No dearer and no less accurate, and better in one of them."""
    return one[0] <= other[0] and one[1] >= other[1] and one != other


def survivors(
    standings: Sequence[Standing],
    most: int,
    unreduced: Sequence[bool],
    within: float | None,
    limit: float | None = None,
) -> tuple[str, ...]:
    """Names of those that go on, in the order given.

    Args:
        standings: All that were asked the same questions.
        most: How many go on, those that are kept anyhow included.
        unreduced: Answers of the unreduced model to these questions.
        within: Accuracy that may be lost; who has surely lost more goes, or None.
        limit: Cost above which a trial cannot be chosen, or None. A quarter of the places is for the
            best of those, so that the front is known there too and a limit may rise yet.
    """
    always = [each.name for each in standings if each.kept]
    hopeful = [
        each
        for each in standings
        if not each.kept
        and (within is None or paired_change(unreduced, each.right).high >= -within)
    ]
    ranks = front_ranks({each.name: (each.cost, each.accuracy) for each in hopeful})
    ordered = sorted(hopeful, key=lambda each: (ranks[each.name], -each.accuracy, each.cost))
    room = max(0, most - len(always))
    dear = [each for each in ordered if limit is not None and each.cost > limit]
    near = [each for each in ordered if limit is None or each.cost <= limit]
    few = dear[: max(room // 4, room - len(near))]
    chosen: Collection[str] = {
        *always,
        *(each.name for each in (*few, *near[: room - len(few)])),
    }
    return tuple(each.name for each in standings if each.name in chosen)


def choose(
    standings: Sequence[Standing],
    unreduced: Sequence[bool],
    most_cost: float | None,
    within: float | None,
    thrifty: bool = False,
) -> Standing | None:
    """The one to build: what the goal asks for, judged on the search half alone.

    With ``within`` the cheapest that loses no more than that, otherwise the most accurate; of equals
    the other decides. None where nobody meets the goal.

    The most accurate of many owes a part of that to chance, so ``thrifty`` takes the cheapest of those
    that are not a standard error of the paired difference below it (the rule of L. Breiman et al.,
    Classification and Regression Trees, 1984, section 3.4.3).

    Args:
        standings: The finalists.
        unreduced: Answers of the unreduced model.
        most_cost: What the first token may cost, or None.
        within: Accuracy that may be lost, or None.
        thrifty: Take the cheapest that is hardly less accurate.
    """
    fitting = [
        each
        for each in standings
        if (most_cost is None or each.cost <= most_cost)
        and (within is None or paired_change(unreduced, each.right).change >= -within)
    ]
    if within is not None:
        return min(fitting, key=lambda each: (each.cost, -each.accuracy), default=None)
    best = min(fitting, key=lambda each: (-each.accuracy, each.cost), default=None)
    if best is None or not thrifty:
        return best
    changes = [(each, paired_change(best.right, each.right)) for each in fitting]
    hardly = [each for each, change in changes if -change.change <= change.standard_error]
    return min(hardly, key=lambda each: (each.cost, -each.accuracy))
