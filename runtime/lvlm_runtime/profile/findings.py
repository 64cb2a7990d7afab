"""Everything that a profile found, before it is a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lvlm_profiles.missing import Missing
from lvlm_profiles.report import Caution
from lvlm_profiles.report.figures import Accuracy, Energy, Sweep
from lvlm_profiles.report.subject import Machine, Request
from lvlm_runtime.profile.memory_run import Readings
from lvlm_runtime.profile.predicted import Cost
from lvlm_runtime.profile.rounds import Measurement


@dataclass(frozen=True)
class Findings:
    """One field per measurement; ``Missing`` stands where there was none, and says why.

    Attributes:
        machine: Where it was measured.
        request: The question, as the model sees it.
        load_ms: Time to load the bundle.
        timings: Every timed request.
        cautions: What was noticed while they ran.
        energy: Ratio -> energy.
        sweeps: Latency over token counts, one curve per subgraph.
        memory: Ratio -> memory at the points that matter.
        costs: Ratio -> what the cost model says.
        accuracy: Ratio -> accuracy; a ratio that was not evaluated has none.
    """

    machine: Machine
    request: Request
    load_ms: float
    timings: Measurement
    cautions: tuple[Caution, ...]
    energy: Mapping[float, Energy | Missing]
    sweeps: tuple[Sweep, ...] | Missing
    memory: Mapping[float, Readings | Missing]
    costs: Mapping[float, Cost] | Missing
    accuracy: Mapping[float, Accuracy] | Missing

    def not_measured(self) -> dict[str, str]:
        """Part of the report -> why it has none; the first ratio's reason stands for all."""
        costs = {} if isinstance(self.costs, Missing) else self.costs
        parts: dict[str, Iterable[object]] = {
            "memory": self.memory.values(),
            "energy": self.energy.values(),
            "accuracy": (self.accuracy,),
            "sweep": (self.sweeps,),
            "predicted": (self.costs,),
            "roofline": (cost.roofline_ms for cost in costs.values()),
        }
        reasons = {
            name: [value.reason for value in values if isinstance(value, Missing)]
            for name, values in parts.items()
        }
        return {name: each[0] for name, each in reasons.items() if each}
