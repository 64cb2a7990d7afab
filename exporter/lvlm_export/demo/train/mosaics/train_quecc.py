"""The training of a QueCC projector for the demo model.

    python -m lvlm_export.demo.train.mosaics.train_quecc --tokens 4

The vision tower stays as the demo's checkpoint has it. The projector starts as a new QueCC followed
by the checkpoint's own two linear maps, and learns from the demo's questions; with
``--train-text`` the language model learns with it. As in the authors' code no gradients flow
through the question's last hidden state. Every question has its own visual tokens, so a picture's
questions are rows of their own here and share only the tower's features.

The demo's tower has 14 x 14 patches, which divide into 1, 4 or 49 tokens; for 16 tokens begin with
the checkpoint that ``lvlm_export.demo.train.mosaics.enlarge`` writes (``--checkpoint``). A QueCC of fewer
tokens may begin with one of more (``--start``), which has learned already to read a question. The
result is a checkpoint like any other: ``lvlm-export build --model DIRECTORY --ratio 1``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from lvlm_export.demo.train.mosaics import CHECKPOINT
from lvlm_export.demo.train.mosaics.batches import (
    QUESTIONS_PER_KIND,
    Batch,
    drawn_questions,
    pixel_values,
)
from lvlm_export.demo.train.mosaics.mosaic import make_mosaic
from lvlm_export.demo.train.mosaics.questions import MosaicQuestion
from lvlm_export.demo.train.mosaics.tiles import Split
from lvlm_export.demo.train.mosaics.train import STAGES, TrainingStage, run_stage, save_trained
from lvlm_export.demo.train.objectives import answer_loss
from lvlm_export.demo.train.rows import NO_LABEL, prompt_head, question_tokens
from lvlm_export.families.shared.projected_llava import ProjectedLlava
from lvlm_export.families.shared.projectors import projector_shape

# The authors' layers 12, 16, 22 and 23 of 23 that run, at the same fractions of the demo's 12.
LEVELS = (6, 8, 11, 12)
CELL_WEIGHTS = "model.multi_modal_projector.0.q_downsample.weight"
# The questions that taught the demo model to find things, the easier ones included.
QUESTIONS = STAGES[-1].questions_per_kind


@dataclass(frozen=True)
class QuestionBatch(Batch):
    """A batch with one question a row; R rows about B pictures.

    Attributes:
        pictures: int64 ``[R]``, the picture of each row.
        query_ids: int64 ``[R, Q]``, the question alone, padded at its end.
        query_lengths: int64 ``[R]``.

    Unlike in a ``Batch``, the attention mask is added to the logits.
    """

    pictures: Tensor
    query_ids: Tensor
    query_lengths: Tensor


class QuestionPacker:
    """Turns mosaics and questions into rows of one question, with one processor's tokens."""

    def __init__(self, processor: LlavaProcessor, image_tokens: int) -> None:
        self.tokenizer = processor.tokenizer
        self._image_processor = processor.image_processor
        self.head = prompt_head(processor, image_tokens)

    def batch(
        self,
        first_seed: int,
        size: int,
        split: Split = "train",
        *,
        flip: bool,
        per_kind: Mapping[str, int] = QUESTIONS_PER_KIND,
    ) -> QuestionBatch:
        """Make the batch of the pictures with seeds first_seed ... first_seed + size - 1."""
        seeds = range(first_seed, first_seed + size)
        mosaics = [make_mosaic(seed, split, flip=flip) for seed in seeds]
        questions = [
            (picture, question)
            for picture, (mosaic, seed) in enumerate(zip(mosaics, seeds, strict=True))
            for question in drawn_questions(mosaic, seed, per_kind)
        ]
        rows = [self._row(question) for _, question in questions]
        queries = [self.tokenizer(question.text)["input_ids"] for _, question in questions]
        pad = self.tokenizer.pad_token_id
        ids, labels = _padded([row[0] for row in rows], pad), _padded([row[1] for row in rows])
        real = torch.arange(ids.shape[1]) < torch.tensor([[len(row[0])] for row in rows])
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        none = torch.zeros(0, dtype=torch.long)
        return QuestionBatch(
            pixel_values=pixel_values(mosaics, self._image_processor),
            input_ids=ids,
            position_ids=torch.arange(ids.shape[1]).expand_as(ids),
            # Padding is at the end, where only padding attends it. Added to attention's logits.
            attention_mask=torch.zeros(ids.shape[1], ids.shape[1])
            .masked_fill(~causal, torch.finfo(torch.float32).min)
            .expand(len(rows), 1, -1, -1),
            labels=labels,
            question_index=torch.where(real, torch.arange(len(rows)).unsqueeze(1), -1),
            cell_shapes=none,
            cell_colors=none,
            pictures=torch.tensor([picture for picture, _ in questions]),
            query_ids=_padded(queries, pad),
            query_lengths=torch.tensor([len(query) for query in queries]),
        )

    def _row(self, question: MosaicQuestion) -> tuple[list[int], list[int]]:
        """Token ids of prompt and answer, and the label of each: the token after it."""
        tokens, prompted = question_tokens(self.tokenizer, question)
        unlabelled = len(self.head) + prompted - 1
        labels = [NO_LABEL] * unlabelled + tokens[prompted:] + [NO_LABEL]
        return self.head + tokens, labels


def _padded(rows: list[list[int]], fill: int = NO_LABEL) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def quecc_model(checkpoint: Path, tokens: int, seed: int) -> ProjectedLlava:
    """The demo's checkpoint with a new QueCC before its projector's linear maps, in float32.

    Args:
        checkpoint: A LLaVA directory.
        tokens: Visual tokens per picture.
        seed: For the new weights.

    Raises:
        ValueError: The tower's grid does not divide into so many tokens.
    """
    config = AutoConfig.from_pretrained(checkpoint)
    # Rows are short here, where the gradient of PyTorch's fused attention takes twice as long.
    config.text_config._attn_implementation = "eager"
    side = config.vision_config.image_size // config.vision_config.patch_size
    edge = math.isqrt(tokens)
    if not edge or edge * edge != tokens or side % edge:
        fits = [n * n for n in range(1, side + 1) if side % n == 0]
        raise ValueError(f"{side} x {side} patches do not divide into {tokens} tokens; into {fits}")
    plain = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    config.vision_feature_layer = list(LEVELS)
    config.image_seq_length = tokens
    config.mm_vision_token_compression_type = "quecc"
    config.mm_vision_token_compression_kernel_size = side // edge
    torch.manual_seed(seed)
    model = ProjectedLlava(config)
    state = {
        name.replace("multi_modal_projector.linear_1", "multi_modal_projector.1").replace(
            "multi_modal_projector.linear_2", "multi_modal_projector.3"
        ): value
        for name, value in plain.state_dict().items()
    }
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith("model.multi_modal_projector.0") for name in missing.missing_keys)
    model.generation_config = plain.generation_config
    return model


def take_over(model: ProjectedLlava, start: Path) -> None:
    """Give a model the weights of a trained QueCC with other cells.

    The weights of a cell are stretched over the new one, with the same sum.
    """
    state = ProjectedLlava.from_pretrained(start, dtype=torch.float32).state_dict()
    cells = state[CELL_WEIGHTS]
    size = model.state_dict()[CELL_WEIGHTS].shape[-2:]
    stretched = nn.functional.interpolate(cells, size=size, mode="bilinear", align_corners=False)
    state[CELL_WEIGHTS] = stretched * (cells[0].numel() / stretched[0].numel())
    model.load_state_dict(state)


def loss_of(model: ProjectedLlava, batch: QuestionBatch) -> tuple[Tensor, Tensor]:
    """Cross entropy of the answers and the share of fully right ones (scalars)."""
    with torch.no_grad():
        features = frozen_features(model, batch.pixel_values)
        query = question_states(model, batch)
    visual = model.model.multi_modal_projector(features, query, batch.pictures)
    # The visual tokens are computed already; the rest is the demo's own objective.
    view = SimpleNamespace(
        model=SimpleNamespace(
            multi_modal_projector=nn.Identity(), language_model=model.model.language_model
        ),
        lm_head=model.lm_head,
        config=model.config,
        get_input_embeddings=model.get_input_embeddings,
    )
    loss, right = answer_loss(view, visual, batch, per_question=True)
    return loss, right.float().mean()


def frozen_features(model: ProjectedLlava, pixels: Tensor) -> Tensor:
    """Features ``[B, P, 4*96]`` of the layers that the projector takes, side by side."""
    shape = projector_shape(model.config)
    assert shape is not None
    out = model.model.vision_tower(pixels, output_hidden_states=True, return_dict=True)
    return torch.cat([out.hidden_states[level] for level in shape.levels], dim=-1)


def question_states(model: ProjectedLlava, batch: QuestionBatch) -> Tensor:
    """Last hidden state ``[R, 1, 192]`` of every question alone."""
    hidden = model.model.language_model(input_ids=batch.query_ids, use_cache=False)[0]
    last: Tensor = hidden[torch.arange(len(hidden)), batch.query_lengths - 1]
    return last.unsqueeze(1)


def training_of(directory: Path) -> list[dict[str, Any]]:
    """The stages that made a checkpoint, first to last, as their settings and last point."""
    log = json.loads((directory / "training_log.json").read_text(encoding="utf-8"))
    points, before = log.pop("points"), log.pop("before", [])
    return [*before, {**log, "last": points[-1]}]


def main() -> None:
    """Train; write the checkpoint and a log beside it."""
    arguments = _parse_arguments()
    torch.set_num_threads(arguments.threads)
    model = quecc_model(arguments.checkpoint, arguments.tokens, arguments.seed)
    if arguments.start is not None:
        take_over(model, arguments.start)
    processor = AutoProcessor.from_pretrained(arguments.checkpoint)
    packer = QuestionPacker(processor, arguments.tokens)
    trained: list[nn.Module] = [model.model.multi_modal_projector]
    if arguments.train_text:
        trained += [model.model.language_model, model.lm_head]
    model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
    stage = TrainingStage(
        f"quecc_{arguments.tokens}",
        arguments.steps,
        arguments.batch_size,
        arguments.learning_rate,
        QUESTIONS,
    )
    first_seed = (1000 + arguments.seed) * 10_000_000
    log = run_stage(stage, lambda batch: loss_of(model, batch), trained, packer, first_seed)
    log["before"] = [] if arguments.start is None else training_of(arguments.start)
    save_trained(model, processor, log, arguments.output)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4, help="visual tokens of a picture")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=10, help="pictures")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--start", type=Path, help="a trained QueCC to begin with")
    parser.add_argument(
        "--train-text", action="store_true", help="train the language model as well"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--output", type=Path, default=Path("demo_quecc"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
