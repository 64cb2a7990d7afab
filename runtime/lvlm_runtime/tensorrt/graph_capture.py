"""When a graph's call is captured as a CUDA graph, and when what was captured still holds.

A captured call replays fixed kernels on fixed addresses and shapes. Decoding with caches of static
length (opset 24 dialect) repeats one call: same buffers, same shapes, only values change, and those
(token, position, write index, filled length) are copied into the same small buffers before it. The
decomposed dialect gives the filled rows as an input that grows by a row per step, so no call is
like the one before and nothing is ever captured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Action(Enum):
    """What to do with a call."""

    RUN = "run"
    CAPTURE = "capture"
    REPLAY = "replay"


@dataclass(frozen=True)
class Call:
    """Everything that a captured call has built in.

    Attributes:
        profile: Optimisation profile.
        bindings: ``(name, address, shape)`` of every input and output.
        scratch: Address of the working memory.
    """

    profile: int
    bindings: tuple[tuple[str, int, tuple[int, ...]], ...]
    scratch: int


@dataclass
class CapturePolicy:
    """One captured call per profile; a call that comes twice in a row is captured.

    Attributes:
        discard: Called with a captured graph that no longer holds.
    """

    discard: Callable[[Any], None]
    _graphs: dict[int, tuple[Call, Any]] = field(default_factory=dict)
    _last: Call | None = None
    _refused: set[int] = field(default_factory=set)

    def decide(self, call: Call) -> Action:
        """What to do with a call; ``CAPTURE`` is to be followed by ``keep`` or ``refuse``."""
        if call.profile in self._graphs and self._graphs[call.profile][0] == call:
            return Action.REPLAY
        repeated, self._last = call == self._last, call
        if repeated and call.profile not in self._refused:
            return Action.CAPTURE
        return Action.RUN

    def keep(self, call: Call, graph: Any) -> None:
        """Remember a captured call in place of the profile's earlier one."""
        if call.profile in self._graphs:
            self.discard(self._graphs.pop(call.profile)[1])
        self._graphs[call.profile] = (call, graph)

    def refuse(self, call: Call) -> None:
        """The library cannot capture calls of this profile; they are run from now on."""
        self._refused.add(call.profile)

    def graph(self, call: Call) -> Any:
        """What ``keep`` was given for a call that is to be replayed."""
        return self._graphs[call.profile][1]

    @property
    def captured(self) -> int:
        """Profiles with a captured call."""
        return len(self._graphs)
