"""The accuracy of a Hugging Face LLaVA directory on the demo's questions.

    python -m lvlm_export.demo.train.evaluate_checkpoint

Uses the checkpoint as any user of transformers would: its own processor and chat template,
``generate``, float32 arithmetic on the stored weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from lvlm_export.demo import CHECKPOINT
from lvlm_export.demo.evaluate import DEFAULT_QUESTIONS, format_table, score_answers
from lvlm_export.demo.questions import SceneSample, evaluation_set
from lvlm_export.demo.train import mosaics
from lvlm_export.demo.train.mosaics.questions import MosaicSample
from lvlm_export.demo.train.mosaics.questions import evaluation_set as mosaic_evaluation_set

_BATCH_SIZE = 50


class CheckpointAnswerer:
    """Answers questions greedily with a checkpoint, many at a time."""

    def __init__(self, directory: Path) -> None:
        self._processor = AutoProcessor.from_pretrained(directory)
        self._model = LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
        self._model.eval()

    def answers(self, questions: Sequence[tuple[Image.Image, str]]) -> list[str]:
        """Answer pairs of picture and question, in batches."""
        texts: list[str] = []
        for start in range(0, len(questions), _BATCH_SIZE):
            texts.extend(self._batch(questions[start : start + _BATCH_SIZE]))
        return texts

    def _batch(self, questions: Sequence[tuple[Image.Image, str]]) -> list[str]:
        inputs = self._processor.apply_chat_template(
            [_conversation(image, question) for image, question in questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        with torch.inference_mode():
            output = self._model.generate(**inputs, do_sample=False)
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.batch_decode(new_tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]


def _conversation(image: Image.Image, question: str) -> list[dict[str, object]]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def main() -> None:
    """Print accuracy per kind of question."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="[the demo's checkpoint]")
    parser.add_argument("-n", type=int, default=DEFAULT_QUESTIONS, help="questions")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other pictures")
    parser.add_argument(
        "--mosaics", action="store_true", help="the mosaics' checkpoint, about mosaics"
    )
    arguments = parser.parse_args()
    own = mosaics.CHECKPOINT if arguments.mosaics else CHECKPOINT
    answerer = CheckpointAnswerer(own if arguments.model is None else arguments.model)
    samples: Sequence[MosaicSample | SceneSample]
    if arguments.mosaics:
        samples = mosaic_evaluation_set(arguments.n, arguments.seed)
    else:
        samples = evaluation_set(arguments.n, arguments.seed)
    started = time.perf_counter()
    answers = answerer.answers([(sample.image, sample.question) for sample in samples])
    print(format_table(score_answers(samples, answers)))
    print(f"{len(samples)} questions in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
