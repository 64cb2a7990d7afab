"""The training of the demo model from random weights: ``python -m lvlm_export.demo.train.mosaics.train``.

Eight stages, each with its own optimizer and learning rate:

- cells: the vision tower learns to label shape and colour of each cell from its patches' mean;
- places: also to name each patch's cell (a tower trained on cells alone forgets where a patch is:
  a linear probe found its cell in 29 % of cases);
- text: projector and language model learn to answer on frozen vision features; the listings of
  whole mosaics teach them to look at a place;
- patches: every patch learns to name its cell's shape, colour and place; without this the model did
  not learn to search and to count;
- answers: as text, with every question counting the same, not every token;
- search: the same, with more questions of the kinds that were worst, place and count;
- locate, find: the same, with questions for the place of the one red shape or the one circle:
  without these easier questions the model looked for the shape of "the blue triangle" and never for
  its colour.

Tokens are never dropped in training, so reduction costs this model what it costs a model that was
not trained for it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import transformers
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from lvlm_export.demo.train.model import IMAGE_TOKENS, build_model, save_checkpoint
from lvlm_export.demo.train.mosaics import CHECKPOINT, MOSAICS_DIR
from lvlm_export.demo.train.mosaics.batches import QUESTIONS_PER_KIND, Batch, Packer
from lvlm_export.demo.train.mosaics.cells import CellHeads
from lvlm_export.demo.train.mosaics.mosaic import make_mosaic
from lvlm_export.demo.train.mosaics.questions import questions_about
from lvlm_export.demo.train.mosaics.tiles import Split
from lvlm_export.demo.train.objectives import answer_loss, vision_features
from lvlm_export.demo.train.processor import build_processor, prompt_tail
from lvlm_profiles.files import whole_file, write_whole

LossFn = Callable[[Batch], tuple[Tensor, Tensor]]
BatchT = TypeVar("BatchT", bound=Batch)
MadeBatchT = TypeVar("MadeBatchT", bound=Batch, covariant=True)


class BatchMaker(Protocol[MadeBatchT]):
    """What makes a stage's batches."""

    def batch(
        self,
        first_seed: int,
        size: int,
        split: Split = "train",
        *,
        flip: bool,
        per_kind: Mapping[str, int],
    ) -> MadeBatchT:
        """The batch of the pictures with seeds first_seed ... first_seed + size - 1."""
        ...


@dataclass(frozen=True)
class TrainingStage:
    """One stage of training."""

    name: str
    steps: int
    batch_size: int  # pictures
    learning_rate: float
    questions_per_kind: Mapping[str, int] = field(default_factory=lambda: QUESTIONS_PER_KIND)


_EASIER_PLACES = {"place_by_color": 3, "place_by_shape": 1}

STAGES: tuple[TrainingStage, ...] = (
    TrainingStage("cells", steps=1500, batch_size=32, learning_rate=1e-3),
    TrainingStage("places", steps=400, batch_size=16, learning_rate=5e-4),
    TrainingStage("text", steps=800, batch_size=16, learning_rate=1e-3),
    TrainingStage("patches", steps=577, batch_size=16, learning_rate=1e-3),
    TrainingStage("answers", steps=1200, batch_size=16, learning_rate=8e-4),
    TrainingStage(
        "search",
        steps=1100,
        batch_size=14,
        learning_rate=6e-4,
        questions_per_kind={"color": 1, "shape": 1, "count": 3, "place": 5, "yes_no": 2},
    ),
    TrainingStage(
        "locate",
        steps=1200,
        batch_size=16,
        learning_rate=8e-4,
        questions_per_kind={"color": 1, "shape": 1, "count": 2, "place": 4, "yes_no": 1}
        | _EASIER_PLACES,
    ),
    TrainingStage(
        "find",
        steps=1600,
        batch_size=16,
        learning_rate=8e-4,
        questions_per_kind={"color": 1, "shape": 1, "count": 3, "place": 4, "yes_no": 2}
        | _EASIER_PLACES,
    ),
)

_WARMUP_STEPS = 100
_WEIGHT_DECAY = 0.02
_GRADIENT_NORM = 1.0
_LOG_EVERY = 25
_SEEDS_PER_STAGE = 10_000_000
_CORPUS_MOSAICS = 400


def main() -> None:
    """Train; write a resumable state after each stage and the checkpoint after the last."""
    arguments = _parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    model = build_model(arguments.seed)
    processor = build_processor(corpus())
    packer = Packer(processor, IMAGE_TOKENS)
    names = [stage.name for stage in STAGES]
    first = names.index(arguments.start_at)
    if first:
        state = torch.load(arguments.work_dir / f"{names[first - 1]}.pt", weights_only=True)
        model.load_state_dict(state)
    for number, stage in enumerate(STAGES[first:], start=first):
        loss_fn, trained = _objective(stage.name, model)
        first_seed = (arguments.seed * len(STAGES) + number) * _SEEDS_PER_STAGE
        log = run_stage(stage, loss_fn, trained, packer, first_seed)
        with whole_file(arguments.work_dir / f"{stage.name}.pt") as stream:
            torch.save(model.state_dict(), stream)
        write_whole(arguments.work_dir / f"{stage.name}.json", json.dumps(log))
    save_checkpoint(model, processor, arguments.output)
    write_log(arguments.work_dir, arguments.log)


def corpus() -> Iterator[str]:
    """Prompts with answers about training mosaics, for the tokenizer."""
    for seed in range(_CORPUS_MOSAICS):
        for groups in questions_about(make_mosaic(seed, "train")).values():
            for group in groups:
                for question in group:
                    yield f"USER: {prompt_tail(question.text)} {question.answer}"


def save_trained(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    log: dict[str, object],
    directory: Path,
) -> None:
    """``save_checkpoint``, with the log of its last stage beside it."""
    save_checkpoint(model, processor, directory)
    write_whole(directory / "training_log.json", json.dumps(log, indent=1) + "\n")


def write_log(work_dir: Path, path: Path) -> None:
    """Join the stages' logs of a working directory into one JSON file."""
    log = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "stages": [json.loads((work_dir / f"{stage.name}.json").read_text()) for stage in STAGES],
    }
    # One line per point keeps the file readable and its diffs small.
    text = json.dumps(log, indent=1)
    text = re.sub(r"\{\s+(\"step\".*?)\s+\}", _one_line, text, flags=re.DOTALL)
    write_whole(path, text + "\n")


def _one_line(point: re.Match[str]) -> str:
    return "{" + " ".join(point[1].split()) + "}"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    parser.add_argument(
        "--work-dir", type=Path, default=Path("demo_training"), help="states and logs of the stages"
    )
    parser.add_argument("--output", type=Path, default=CHECKPOINT)
    parser.add_argument("--log", type=Path, default=MOSAICS_DIR / "training_log.json")
    parser.add_argument(
        "--start-at",
        choices=[stage.name for stage in STAGES],
        default=STAGES[0].name,
        help="begin with this stage, from the state that the one before it left in --work-dir",
    )
    return parser.parse_args()


def _objective(name: str, model: LlavaForConditionalGeneration) -> tuple[LossFn, list[nn.Module]]:
    """A stage's loss, with the share of right answers, and the modules that it trains."""
    tower = model.model.vision_tower
    heads = CellHeads(model.config.vision_config.hidden_size)

    def cells(batch: Batch) -> tuple[Tensor, Tensor]:
        return heads.cell_loss(vision_features(model, batch.pixel_values), batch)

    def cells_and_places(batch: Batch) -> tuple[Tensor, Tensor]:
        features = vision_features(model, batch.pixel_values)
        loss, right = heads.cell_loss(features, batch)
        return loss + heads.place_loss(features), right

    def patches(batch: Batch) -> tuple[Tensor, Tensor]:
        return heads.patch_loss(vision_features(model, batch.pixel_values), batch)

    def answers_on_frozen_vision(batch: Batch, per_question: bool) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            features = vision_features(model, batch.pixel_values)
        loss, right = answer_loss(model, features, batch, per_question=per_question)
        return loss, right.float().mean()

    text = [model.model.multi_modal_projector, model.model.language_model, model.lm_head]
    objectives: dict[str, tuple[LossFn, list[nn.Module]]] = {
        "cells": (cells, [tower, heads]),
        "places": (cells_and_places, [tower, heads]),
        "text": (partial(answers_on_frozen_vision, per_question=False), text),
        "patches": (patches, [tower, heads]),
        **dict.fromkeys(
            ("answers", "search", "locate", "find"),
            (partial(answers_on_frozen_vision, per_question=True), text),
        ),
    }
    return objectives[name]


def run_stage(
    stage: TrainingStage,
    loss_fn: Callable[[BatchT], tuple[Tensor, Tensor]],
    trained: list[nn.Module],
    packer: BatchMaker[BatchT],
    first_seed: int,
) -> dict[str, object]:
    """Run one stage; returns its log: settings, seconds, and loss and accuracy over time."""
    parameters = [parameter for module in trained for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(_decay_groups(parameters), lr=0.0, betas=(0.9, 0.98))
    started, points = time.perf_counter(), []
    recent: list[tuple[float, float]] = []
    for step in range(stage.steps):
        seed = first_seed + step * stage.batch_size
        batch = packer.batch(seed, stage.batch_size, flip=True, per_kind=stage.questions_per_kind)
        with torch.autocast("cpu", torch.bfloat16):
            loss, right = loss_fn(batch)
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * _schedule(step, stage.steps)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
        optimizer.step()
        recent.append((loss.item(), right.item()))
        if (step + 1) % _LOG_EVERY == 0:
            points.append(_point(step + 1, recent, time.perf_counter() - started))
            print(stage.name, json.dumps(points[-1]), flush=True)
            recent.clear()
    return {**asdict(stage), "seconds": round(time.perf_counter() - started), "points": points}


def _decay_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, object]]:
    """Weight decay for matrices, none for biases and norms."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": _WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _schedule(step: int, steps: int) -> float:
    """Share of the full learning rate: linear warm-up, then a cosine down to zero."""
    if step < _WARMUP_STEPS:
        return (step + 1) / _WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - _WARMUP_STEPS) / (steps - _WARMUP_STEPS)))


def _point(step: int, recent: list[tuple[float, float]], seconds: float) -> dict[str, float]:
    loss, right = (sum(column) / len(recent) for column in zip(*recent, strict=True))
    return {
        "step": step,
        "loss": round(loss, 4),
        "right": round(right, 4),
        "seconds": round(seconds),
    }


if __name__ == "__main__":
    main()
