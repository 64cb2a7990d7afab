"""The demo model for larger pictures: ``python -m lvlm_export.demo.train.mosaics.enlarge --pixels 128``.

14 x 14 patches divide into 1, 4 or 49 equal cells and not into 16. At 128 pixels the tower has
16 x 16, which divide into 1, 4, 16 and 64. Position embeddings are interpolated, as is usual when a
ViT gets a finer grid, and the tower learns again to name each patch's shape, colour and place.
Projector and language model stay as they were, so the result is a start for
``lvlm_export.demo.train.mosaics.train_quecc`` and answers badly by itself: its text begins 60 positions
later than in its training.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

from lvlm_export.demo.train.mosaics import CHECKPOINT
from lvlm_export.demo.train.mosaics.batches import Batch, Packer
from lvlm_export.demo.train.mosaics.cells import CellHeads
from lvlm_export.demo.train.mosaics.train import TrainingStage, run_stage, save_trained
from lvlm_export.demo.train.objectives import vision_features

POSITIONS = "model.vision_tower.embeddings.position_embedding.weight"
FIRST_SEED = 900_000_000


def enlarge_model(checkpoint: Path, pixels: int) -> LlavaForConditionalGeneration:
    """The model with its tower's position embeddings interpolated, in float32.

    Args:
        checkpoint: A LLaVA directory with a SigLIP tower.
        pixels: New edge of its pictures.

    Raises:
        ValueError: Not a whole number of patches.
    """
    config = AutoConfig.from_pretrained(checkpoint)
    vision = config.vision_config
    if pixels < vision.patch_size or pixels % vision.patch_size:
        raise ValueError(f"{pixels} pixels are not a multiple of the patches' {vision.patch_size}")
    plain = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    vision.image_size, side = pixels, pixels // vision.patch_size
    config.image_seq_length = side**2
    model = LlavaForConditionalGeneration(config)
    state = plain.state_dict()
    state[POSITIONS] = interpolate_positions(state[POSITIONS], side)
    model.load_state_dict(state)
    model.generation_config = plain.generation_config
    return model


def interpolate_positions(positions: Tensor, side: int) -> Tensor:
    """Embeddings ``[n², C]`` of a square grid for one of ``side``: ``[side², C]``, bicubic."""
    before = math.isqrt(len(positions))
    grid = positions.T.reshape(1, -1, before, before)
    finer = functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return finer.flatten(2)[0].T.contiguous()


def main() -> None:
    """Train the tower and write the checkpoint and a log beside it."""
    arguments = _parse_arguments()
    torch.set_num_threads(arguments.threads)
    model = enlarge_model(arguments.checkpoint, arguments.pixels)
    processor = AutoProcessor.from_pretrained(arguments.checkpoint)
    processor.image_processor.size = {"height": arguments.pixels, "width": arguments.pixels}
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    heads, tower = CellHeads(vision.hidden_size, side), model.model.vision_tower

    def patches(batch: Batch) -> tuple[Tensor, Tensor]:
        return heads.patch_loss(vision_features(model, batch.pixel_values), batch)

    stage = TrainingStage("patches", arguments.steps, arguments.batch_size, arguments.learning_rate)
    log = run_stage(stage, patches, [tower, heads], Packer(processor, side**2), FIRST_SEED)
    save_trained(model, processor, log, arguments.output)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=int, default=128, help="edge of a picture")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=16, help="pictures")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--output", type=Path, default=Path("demo_128"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
