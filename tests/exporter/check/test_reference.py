"""What the reference calls the answer of ``transformers``."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import tiny
from lvlm_export.check.parity import request_of, synthetic_samples
from lvlm_export.check.reference import Reference
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions, make_plan
from lvlm_runtime.prompt.encoder import PromptEncoder

WINDOW = 16  # Shorter than the prompt.


def test_a_left_over_window_cuts_nothing_from_the_answer(tmp_path: Path) -> None:
    """Llama has no window, whatever its config.json says: an answer is what its own logits choose."""
    directory = tiny.llava(tmp_path / "checkpoint", seed=3)
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["sliding_window"] = WINDOW
    (directory / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint.open(directory)
    plan = make_plan(checkpoint, BuildOptions((0.5,)))
    reference = Reference(directory, checkpoint.family, plan)
    shape = plan.shape
    sample = synthetic_samples(shape.layouts, 1)[0]
    request = request_of(
        sample, PromptEncoder.open(directory), shape.layouts, shape.preprocess, shape.image_token_id
    )
    answer = reference.generate_unreduced(request, (-1,), 6)

    pixels = torch.from_numpy(request.pixel_values)
    before, after = request.runs
    visual = [shape.image_token_id] * shape.vision.tokens
    ids = [*before, *visual, *after]
    for token in answer:  # The whole sequence each time, without a cache.
        with torch.no_grad():
            logits = reference.model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits
        assert token == int(logits[0, -1].argmax())
        ids.append(token)
