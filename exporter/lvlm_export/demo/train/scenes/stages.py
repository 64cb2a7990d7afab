"""Runs a stage step by step; a kill costs the minutes since the last state was written.

What a step does follows from its number, not from the clock: its pictures and questions, and its
learning rate. A run that was stopped and goes on gives the weights of one that was not, on the same
machine with as many threads.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lvlm_export.demo.train.scenes.recipe import SceneStage
from lvlm_profiles.files import whole_file, write_whole

LOG_EVERY = 50
_WARMUP_STEPS = 100
_WEIGHT_DECAY = 0.02
_GRADIENT_NORM = 1.0


class SceneObjective(Protocol):
    """What a stage minimizes.

    Attributes:
        modules: What learns, by the name under which a state holds it; each with the factor on the
            learning rate.
    """

    modules: dict[str, tuple[nn.Module, float]]

    def losses(self, start: int) -> Iterable[tuple[Tensor, dict[str, float]]]:
        """Loss (a scalar) of each step from ``start`` on, and facts to log the means of."""
        ...


@dataclass
class StageLog:
    """What a stage logs; its points are lines of a file.

    Attributes:
        path: The file.
        seconds: Time spent in this stage before this run.
        processor: Processor time spent in this stage before this run, seconds.
    """

    path: Path
    seconds: float = 0.0
    processor: float = 0.0
    _started: tuple[float, float] = field(
        default_factory=lambda: (time.perf_counter(), time.process_time())
    )

    def spent(self) -> tuple[float, float]:
        """Seconds and processor seconds of this stage, in all runs."""
        wall, processor = self._started
        return (
            self.seconds + time.perf_counter() - wall,
            self.processor + time.process_time() - processor,
        )

    def keep_until(self, step: int) -> None:
        """Drop points after a step: a run goes on from there and logs them again."""
        points = read_points(self.path)
        kept = [json.dumps(point) for point in points if point["step"] <= step]
        write_whole(self.path, "".join(f"{line}\n" for line in kept))

    def add(self, point: dict[str, Any]) -> None:
        """Add a point to the file, and print it."""
        line = json.dumps(point)
        lines = [json.dumps(each) for each in read_points(self.path)]
        write_whole(self.path, "".join(f"{each}\n" for each in [*lines, line]))
        print(self.path.stem, line, flush=True)


def read_points(path: Path) -> list[dict[str, Any]]:
    """The points of a log; a last line that a kill cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def run_scene_stage(
    stage: SceneStage,
    objective: SceneObjective,
    directory: Path,
    *,
    save_every: float,
    stop_at: int | None = None,
) -> bool:
    """Run a stage from its last state on.

    Args:
        stage: Which.
        objective: What it minimizes; its modules hold the weights before and after.
        directory: Holds ``<stage>.part.pt`` while it runs and ``<stage>.jsonl``, its log.
        save_every: Seconds between two states on the disk.
        stop_at: Stop at this step, with a state; None runs to the end.

    Returns:
        Whether the stage is done.
    """
    state_file = directory / f"{stage.name}.part.pt"
    optimizer = _optimizer(objective)
    log, step = StageLog(directory / f"{stage.name}.jsonl"), 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        for name, (module, _) in objective.modules.items():
            module.load_state_dict(state["modules"][name])
        optimizer.load_state_dict(state["optimizer"])
        step, log.seconds, log.processor = state["step"], state["seconds"], state["processor"]
    log.keep_until(step)
    last = stage.steps if stop_at is None else min(stop_at, stage.steps)
    recent: list[dict[str, float]] = []
    saved = time.perf_counter()
    losses = iter(objective.losses(step))
    while step < last:
        rate = stage.learning_rate * learning_rate_share(step, stage.steps)
        facts = _one_step(next(losses), optimizer, rate)
        step += 1
        recent.append(facts)
        if step % LOG_EVERY == 0 or step == stage.steps:
            seconds, processor = log.spent()
            means = {name: round(_mean(recent, name), 4) for name in recent[0]}
            log.add({"step": step, **means, "seconds": round(seconds), "cpu": round(processor)})
            recent.clear()
            # Only here, so that a run that goes on logs the same means.
            if time.perf_counter() - saved >= save_every:
                _save(state_file, objective, optimizer, step, log)
                saved = time.perf_counter()
    _save(state_file, objective, optimizer, step, log)
    return step == stage.steps


def _one_step(
    made: tuple[Tensor, dict[str, float]], optimizer: torch.optim.Optimizer, rate: float
) -> dict[str, float]:
    loss, facts = made
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
    optimizer.step()
    return {"loss": loss.item(), **facts}


def learning_rate_share(step: int, steps: int) -> float:
    """Share of the full learning rate: linear warm-up, then a cosine down to zero."""
    warmup = min(_WARMUP_STEPS, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _optimizer(objective: SceneObjective) -> torch.optim.AdamW:
    """Weight decay for matrices, none for biases and norms."""
    groups: list[dict[str, Any]] = []
    for module, factor in objective.modules.values():
        parameters = [p for p in module.parameters() if p.requires_grad]
        for matrices, decay in ((True, _WEIGHT_DECAY), (False, 0.0)):
            chosen = [p for p in parameters if (p.ndim > 1) == matrices]
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "factor": factor})
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))


def _save(
    path: Path,
    objective: SceneObjective,
    optimizer: torch.optim.Optimizer,
    step: int,
    log: StageLog,
) -> None:
    seconds, processor = log.spent()
    state = {
        "modules": {name: m.state_dict() for name, (m, _) in objective.modules.items()},
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
        "processor": processor,
    }
    with whole_file(path) as stream:
        torch.save(state, stream)


def _mean(facts: Sequence[dict[str, float]], name: str) -> float:
    # NaN stands for a batch that asked nothing of the kind.
    values = [each[name] for each in facts if not math.isnan(each[name])]
    return sum(values) / len(values) if values else math.nan
