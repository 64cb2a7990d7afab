"""One side of ``peers.py`` in a process of its own: ``python peer_workers.py SIDE DIRECTORY``.

Reads one JSON request per line and answers with one JSON line; a side holds nothing of another's
memory, libraries or threads. Requests: ``{"do": "ask", "ratio": r}`` (a picture and a question) and
``{"do": "text", "tokens": n}`` (a text prompt of n tokens). Answers: milliseconds to the first
token and per token after it, the token ids, and this process's resident memory now and at its peak.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

THREADS = 2
ANSWER_TOKENS = 17
QUESTION = "What is in the picture? Say where it is and what lies beside it."


def picture(size: int) -> Any:
    """A seeded picture, ``[size, size, 3]`` uint8."""
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)


def text_ids(tokens: int) -> list[int]:
    """Seeded ordinary token ids."""
    return [int(i) for i in np.random.default_rng(1).integers(300, 500, tokens)]


def resident() -> dict[str, float]:
    """Resident memory in MB: now, of it private (not mapped from files), and the peak."""
    fields = {}
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmRSS", "RssAnon", "VmHWM"):
            fields[name] = int(rest.split()[0]) / 1e3
    return fields


class Ours:
    """This project's runtime on a bundle."""

    def __init__(self, directory: Path) -> None:
        from lvlm_runtime.session import Session

        self.session = Session.open(directory, device="cpu", threads=THREADS)

    def ask(self, ratio: float) -> dict[str, Any]:
        ids = self.session.encoder.encode(QUESTION, 1)
        return self._generate(ids, [picture(384)], ratio)

    def text(self, tokens: int) -> dict[str, Any]:
        return self._generate(text_ids(tokens), [], 1.0)

    def _generate(self, ids: list[int], images: list[Any], ratio: float) -> dict[str, Any]:
        done = self.session.generate_ids(
            ids, images, ratio, max_new_tokens=ANSWER_TOKENS, ignore_stop=True
        )
        return {
            "first_ms": done.time_to_first_token_ms,
            "token_ms": 1e3 / (done.decode_tokens_per_s or float("nan")),
            "own_ms": done.own_time_ms,
            "ids": list(done.token_ids),
            "visual_tokens": done.visual_tokens,
        }


class PyTorch:
    """``transformers`` on PyTorch, float32, on the checkpoint; greedy, key-value cache, sdpa."""

    def __init__(self, directory: Path) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        torch.set_num_threads(THREADS)
        self.torch = torch
        self.model = AutoModelForImageTextToText.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        # The pixels and ids that the bundle's own preprocessing and template give.
        from lvlm_runtime.bundle.bundle import TOKENIZER, Bundle
        from lvlm_runtime.prompt.encoder import PromptEncoder

        self.bundle = Bundle.open(directory.with_name(f"{directory.name}-bundle"))
        self.encoder = PromptEncoder.read(
            self.bundle.tokenizer_files(), self.bundle.path(TOKENIZER)
        )

    def ask(self, ratio: float) -> dict[str, Any]:
        if ratio != 1.0:
            raise ValueError("PyTorch runs the unreduced model")
        from lvlm_runtime.image import preprocess
        from lvlm_runtime.image.picture import load_image

        manifest = self.bundle.manifest
        start = time.perf_counter()
        image = manifest.text.image_token_id
        ids = [
            token
            for given in self.encoder.encode(QUESTION, 1)
            for token in ([image] * manifest.vision_tokens if given == image else [given])
        ]
        prepared = preprocess.preprocess(
            [load_image(picture(384))], manifest.preprocess, manifest.layouts[0]
        )
        pixels = self.torch.from_numpy(prepared.pixel_values)
        return self._generate(ids, {"pixel_values": pixels}, start)

    def text(self, tokens: int) -> dict[str, Any]:
        return self._generate(text_ids(tokens), {}, time.perf_counter())

    def _generate(self, ids: list[int], extra: dict[str, Any], start: float) -> dict[str, Any]:
        torch = self.torch
        with torch.inference_mode():
            out = self.model(
                input_ids=torch.tensor([ids]), use_cache=True, logits_to_keep=1, **extra
            )
            answer = [int(out.logits[0, -1].argmax())]
            first = time.perf_counter()
            while len(answer) < ANSWER_TOKENS:
                out = self.model(
                    input_ids=torch.tensor([[answer[-1]]]),
                    past_key_values=out.past_key_values,
                    use_cache=True,
                )
                answer.append(int(out.logits[0, -1].argmax()))
        rest = (time.perf_counter() - first) / (ANSWER_TOKENS - 1)
        return {"first_ms": (first - start) * 1e3, "token_ms": rest * 1e3, "ids": answer}


class GenAI:
    """onnxruntime-genai on a float32 model by its own builder, of the same text weights."""

    def __init__(self, directory: Path) -> None:
        import onnxruntime_genai as og

        self.og, self.model = og, og.Model(str(directory))

    def text(self, tokens: int) -> dict[str, Any]:
        length = tokens + ANSWER_TOKENS
        start = time.perf_counter()
        params = self.og.GeneratorParams(self.model)
        # do_sample=False is greedy; min_length keeps it from stopping.
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = self.og.Generator(self.model, params)
        generator.append_tokens(np.asarray([text_ids(tokens)], np.int32))
        generator.generate_next_token()
        answer = [int(generator.get_next_tokens()[0])]
        first = time.perf_counter()
        while len(answer) < ANSWER_TOKENS:
            generator.generate_next_token()
            answer.append(int(generator.get_next_tokens()[0]))
        rest = (time.perf_counter() - first) / (ANSWER_TOKENS - 1)
        return {"first_ms": (first - start) * 1e3, "token_ms": rest * 1e3, "ids": answer}


SIDES: dict[str, Callable[[Path], Any]] = {"ours": Ours, "pytorch": PyTorch, "genai": GenAI}


def main() -> None:
    """Serve requests until standard input ends."""
    side = SIDES[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps({"ready": resident()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        kind = request.pop("do")
        answer = getattr(side, kind)(**request)
        print(json.dumps({**answer, "resident": resident()}), flush=True)


if __name__ == "__main__":
    main()
