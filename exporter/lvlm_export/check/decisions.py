"""What a reducer decides: which tokens stay, which pairs merge; recorded, compared and repeated.

A reducer is continuous but for its choices (a TopK, an ArgMax, a comparison of scores). Where two
runs on nearly equal inputs choose differently, the scores say whether that was a near tie; and a
run that repeats the other's choices can be compared with it exactly.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Functions that choose along one dimension, and whether they give values beside the places.
CHOOSING = {"topk": True, "sort": True, "max": True, "min": True, "argmax": False, "argmin": False}
COMPARING = frozenset({"gt", "ge", "lt", "le", "__gt__", "__ge__", "__lt__", "__le__"})


@dataclass(frozen=True)
class Decision:
    """One choice among floating-point scores.

    Attributes:
        where: File and line of the call; choices of one line are of one kind.
        scores: What was chosen among; of a comparison, the left side less the right one.
        dim: The dimension of ``scores`` along which places were chosen; None for a comparison.
        chosen: Places along ``dim``, or a mask.
        scale: Largest score that was chosen; of a comparison, that was compared.
    """

    where: tuple[str, int]
    scores: Tensor
    dim: int | None
    chosen: Tensor
    scale: float

    def at(self, chosen: Tensor) -> Tensor:
        """The scores of other places, or of a mask."""
        if self.dim is None:
            return torch.where(chosen, self.scores, 0.0)
        return self.scores.gather(self.dim, chosen)

    def differs(self, chosen: Tensor) -> bool:
        """Other places, or another mask, were chosen elsewhere."""
        return not torch.equal(self.chosen, chosen)

    def gap(self, chosen: Tensor) -> float:
        """Largest difference between the scores of what was chosen here and there, rank by rank.

        Two choices among scores that differ by at most ``d`` have a gap of at most ``2 d``.
        """
        return float((self.at(self.chosen) - self.at(chosen)).abs().max())


@dataclass(frozen=True)
class NearTie:
    """A choice that two runs made differently.

    Attributes:
        gap: Difference of the earlier run's scores, relative to the largest that it chose by this
            line of code so far.
        places: Tokens, or pairs of tokens, that one run chose and the other did not; 0 where only
            their order differs.
    """

    gap: float
    places: int


class Decisions(TorchFunctionMode):
    """Inside the block, notes every choice among floating-point scores.

    Args:
        repeat: Decisions of an earlier run of the same code. They are made again, whatever the scores
            say here; ``ties`` then has those that would have been made differently.

    Attributes:
        made: The choices, in order; those of ``repeat`` where they are repeated.
        ties: Where the scores say otherwise than ``repeat``, in order.

    Example:
        >>> with Decisions() as first:
        ...     _ = torch.tensor([3.0, 1.0, 2.001, 2.0]).topk(2)
        >>> with Decisions(first.made) as second:
        ...     torch.tensor([3.0, 1.0, 2.0, 2.001]).topk(2).indices.tolist()
        [0, 2]
        >>> [(round(tie.gap, 4), tie.places) for tie in second.ties]
        [(0.0003, 1)]
    """

    def __init__(self, repeat: Sequence[Decision] = ()) -> None:
        super().__init__()
        self.repeat = tuple(repeat)
        self.made: list[Decision] = []
        self.ties: list[NearTie] = []
        self._largest: dict[tuple[str, int], float] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # the signature is torch's
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            return out
        frame = sys._getframe(1)
        where = (frame.f_code.co_filename, frame.f_lineno)
        if name in COMPARING:
            scores, scale = (args[0] - args[1]).float(), float(args[0].abs().max())
            return self._note(Decision(where, scores, None, out, scale))
        if name not in CHOOSING or isinstance(out, Tensor) == CHOOSING[name]:
            return out
        return self._chosen(args, kwargs, out, name, where)

    def _chosen(self, args: Any, kwargs: Any, out: Any, name: str, where: tuple[str, int]) -> Any:
        index = out.indices if CHOOSING[name] else out
        if not index.numel():
            return out  # nothing is chosen
        position = 2 if name == "topk" else 1
        dim = kwargs.get("dim", args[position] if len(args) > position else None)
        keeps = index.dim() == args[0].dim()
        if dim is None:
            if not keeps:
                return out  # over all elements: a number, not a place
            dim = -1
        shaped = index if keeps else index.unsqueeze(dim)
        scores, dim = args[0].float(), dim % args[0].dim()
        scale = float(scores.gather(dim, shaped).abs().max())
        choice = Decision(where, scores, dim, shaped, scale)
        repeated = self._note(choice)
        if repeated is shaped:
            return out
        values = args[0].gather(dim, repeated)
        if not keeps:
            repeated, values = repeated.squeeze(dim), values.squeeze(dim)
        return type(out)((values, repeated)) if CHOOSING[name] else repeated

    def _note(self, choice: Decision) -> Tensor:
        """Keep a choice; the places or mask to go on with."""
        if not self.repeat:
            self.made.append(choice)
            return choice.chosen
        number = len(self.made)
        assert number < len(self.repeat), "two runs of one reducer made different choices"
        earlier = self.repeat[number]
        assert earlier.chosen.shape == choice.chosen.shape, "the runs are of different counts"
        self.made.append(earlier)
        scale = max(earlier.scale, self._largest.get(earlier.where, 1e-30))
        self._largest[earlier.where] = scale
        if not earlier.differs(choice.chosen):
            return choice.chosen
        gap = earlier.gap(choice.chosen) / scale
        self.ties.append(NearTie(gap, _unlike(earlier, choice.chosen)))
        return earlier.chosen


def _unlike(choice: Decision, chosen: Tensor) -> int:
    """Places of ``chosen`` that ``choice`` has not."""
    if choice.dim is None:
        return int((choice.chosen != chosen).sum())
    marks = torch.zeros_like(choice.scores, dtype=torch.bool)
    marks.scatter_(choice.dim, choice.chosen, True)
    return int((~marks.gather(choice.dim, chosen)).sum())
