"""Writes questions about pictures that the demo model never saw: ``questions.py DIRECTORY``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lvlm_export.demo.questions import evaluation_set

directory = Path(sys.argv[1])
directory.mkdir(parents=True, exist_ok=True)
with (directory / "questions.jsonl").open("w", encoding="utf-8") as lines:
    for number, sample in enumerate(evaluation_set(60)):
        image = f"{number}.png"
        sample.image.save(directory / image)
        line = {
            "image": image,
            "question": sample.question,
            "answer": sample.answer,
            "kind": sample.kind,
        }
        lines.write(json.dumps(line) + "\n")
