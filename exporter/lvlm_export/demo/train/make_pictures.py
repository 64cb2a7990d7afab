"""The example pictures and their questions: ``python -m lvlm_export.demo.train.make_pictures``."""

from __future__ import annotations

import json

import numpy as np

from lvlm_export.demo import PICTURES
from lvlm_export.demo.mosaic import make_mosaic
from lvlm_export.demo.questions import KINDS, draw_question, questions_about
from lvlm_profiles.files import whole_file, write_whole

_SEEDS = range(6)  # far below the seeds of evaluation_set, so these are other pictures


def main() -> None:
    """Write mosaic_0.png ... mosaic_5.png of test tiles, and questions.json."""
    PICTURES.mkdir(exist_ok=True)
    items = []
    for seed in _SEEDS:
        mosaic = make_mosaic(seed, "test")
        name = f"mosaic_{seed}.png"
        with whole_file(PICTURES / name) as stream:
            mosaic.image.save(stream, "PNG")
        groups, rng = questions_about(mosaic), np.random.default_rng(seed)
        for question in (draw_question(groups, kind, rng) for kind in KINDS):
            if question is not None:
                items.append({"image": name, "question": question.text, "answer": question.answer})
    write_whole(PICTURES / "questions.json", json.dumps(items, indent=1) + "\n")


if __name__ == "__main__":
    main()
