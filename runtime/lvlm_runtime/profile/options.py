"""What a profile measures and how: everything that a user can choose about it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lvlm_runtime.errors import UsageError

if TYPE_CHECKING:
    from lvlm_profiles.devices.device import Device
    from lvlm_runtime.bundle.bundle import Bundle
    from lvlm_runtime.profile.accuracy import EvalResult
    from lvlm_runtime.session import Picture

# The defaults; the command line shows them, and must not load numpy to do so.
PROMPT, ANSWER_TOKENS, ITERATIONS = "Describe the picture.", 32, 10


@dataclass(frozen=True)
class ProfileOptions:
    """A question, how often and at which ratios it is asked, and what is measured beside the time.

    Attributes:
        prompt: The question.
        images: Picture files, in the order the question speaks of them; none (an empty tuple) for a
            question without pictures, None for one picture that is made for the profile.
        ratios: Budgets; every round asks each of them. Empty for all that the bundle has.
        answer_tokens: Tokens of every answer; stop tokens do not end it.
        iterations: Measured rounds; None for ``ITERATIONS``, or for as many as ``duration_s`` takes.
        duration_s: Measure rounds for so many seconds, and at least ``rounds.LEAST_ROUNDS``.
        warmup: Rounds that are not counted; None for as many as it takes until times settle.
        sweep: Measure latency over token counts too.
        accuracy: What ``lvlm-export eval`` found of this bundle; None for nothing.
        roofline: Device profile for the roofline; None for none.
        backend: As in ``Session.open``.
        device: As in ``Session.open``.
        threads: As in ``Session.open``.

    Raises:
        UsageError: Rounds are limited both ways, or by no time at all.

    Example:
        >>> ProfileOptions(ratios=(0.33, 1.0), duration_s=30.0).answer_tokens
        32
    """

    prompt: str = PROMPT
    images: tuple[Path, ...] | None = None
    ratios: tuple[float, ...] = ()
    answer_tokens: int = ANSWER_TOKENS
    iterations: int | None = None
    duration_s: float | None = None
    warmup: int | None = None
    sweep: bool = False
    accuracy: EvalResult | None = None
    roofline: Device | None = None
    backend: str = "auto"
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.duration_s is None:
            return
        if self.iterations is not None:
            raise UsageError("--iterations and --duration exclude each other; give one of them")
        if not self.duration_s > 0:
            raise UsageError(f"--duration {self.duration_s:g} must be above 0 seconds")

    @cached_property
    def pictures(self) -> tuple[Picture, ...]:
        """What every request shows: the files, or the one picture that is made."""
        if self.images is not None:
            return self.images
        from lvlm_runtime.image import synthetic

        return (synthetic.picture(),)

    def for_bundle(self, bundle: Bundle) -> ProfileOptions:
        """The same with the ratios that are measured, each once and as the bundle spells it.

        Raises:
            UsageError: A ratio that the bundle does not have.
        """
        wanted = self.ratios or tuple(budget.ratio for budget in bundle.manifest.budgets)
        ratios = dict.fromkeys(bundle.budget(ratio).ratio for ratio in wanted)
        return replace(self, ratios=tuple(ratios))
