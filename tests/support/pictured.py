"""Questions about pictures of noise, as a file that ``eval`` and ``tune`` read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_questions(directory: Path, pictures: int) -> Path:
    """Two questions about each picture; all files lie in the directory."""
    lines = []
    for number in range(pictures):
        noise = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(directory / f"{number}.png")
        lines += [
            json.dumps({"image": f"{number}.png", "question": question, "answer": "red"})
            for question in ("What?", "Which color?")
        ]
    path = directory / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
