"""What ``lvlm-export tune`` found, as a record that a JSON file holds."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_profiles.statistics import PairedChange


@dataclass(frozen=True)
class HeldOut:
    """Answers to the questions that no choice was made by.

    Attributes:
        accuracy: Share of right answers.
        low: Lower end of its 95 % interval.
        high: Upper end.
        against_unreduced: The change from the unreduced model.
    """

    accuracy: float
    low: float
    high: float
    against_unreduced: PairedChange


@dataclass(frozen=True)
class TunedTrial:
    """One way to reduce, and how far it came.

    Attributes:
        name: Its name.
        method: Of the reduction.
        ratio: Share of visual tokens kept.
        sites: By hand; empty for the method's own.
        share: Of the log-ratio before the decoder, by hand, or None.
        cost: Of the first token, in the result's unit.
        asked: Questions of the search half that it answered.
        right: How many of them it answered right.
        held_out: A finalist's answers to the other half, else None.
        measured_ms: Median time to first token on this machine, where it was measured.
    """

    name: str
    method: str
    ratio: float
    sites: tuple[str, ...]
    share: float | None
    cost: float
    asked: int
    right: int
    held_out: HeldOut | None = None
    measured_ms: float | None = None


@dataclass(frozen=True)
class TuningStep:
    """One step of the halving.

    Attributes:
        questions: Of the search half.
        trials: That were asked them, the unreduced model left out.
    """

    questions: int
    trials: int


@dataclass(frozen=True)
class TuningResult:
    """A whole search.

    Attributes:
        model: Its name.
        unit: Of all costs.
        basis: What costs stand on, one line.
        most_cost: What the first token may cost, or None.
        within: Accuracy that may be lost, or None.
        seed: Of the order and the halves.
        search_questions: In the half that choices are made by.
        held_questions: In the other half.
        against: Ratio of the best single method that the chosen one is compared with.
        refused: Names of trials that the model cannot have, and why.
        too_slow: Trials that were left out since they cost more than the goal.
        steps: Of the halving.
        unreduced: The model without reduction.
        trials: All that were asked anything.
        chosen: Name of the one to build.
        refuted: Name of the best of the search half, where the held-out half says that it is less
            accurate than the best single method, which is chosen then; else None.
        single: Name of the best single method, as published, at the ratio to compare at; None where
            there is none among the trials.
        against_single: The change from it to the chosen or refuted one on the held-out half, or None.
        next_best: Name of the next best that meets the goal, or None.
        against_next: The change from it to the chosen one on the held-out half, or None.
        effort: What all questions took of the operations of asking each trial by itself.
        processor_seconds: Time of the processor for all questions.
        created: When, ISO 8601.
        machine: What answered, and measured.
        versions: Of the packages that did.
    """

    model: str
    unit: str
    basis: str
    most_cost: float | None
    within: float | None
    seed: int
    search_questions: int
    held_questions: int
    against: float
    refused: tuple[tuple[str, str], ...]
    too_slow: int
    steps: tuple[TuningStep, ...]
    unreduced: TunedTrial
    trials: tuple[TunedTrial, ...]
    chosen: str
    refuted: str | None
    single: str | None
    against_single: PairedChange | None
    next_best: str | None
    against_next: PairedChange | None
    effort: float
    processor_seconds: float
    created: str
    machine: str
    versions: dict[str, str]

    def trial(self, name: str) -> TunedTrial:
        """The trial of a name."""
        return next(each for each in (self.unreduced, *self.trials) if each.name == name)

    @property
    def finalists(self) -> tuple[TunedTrial, ...]:
        """Those that answered the held-out half, cheapest first."""
        found = [each for each in self.trials if each.held_out is not None]
        return tuple(sorted(found, key=lambda each: (each.cost, each.name)))
