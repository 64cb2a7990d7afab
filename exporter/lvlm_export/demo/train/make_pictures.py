"""The example pictures and their questions: ``python -m lvlm_export.demo.train.make_pictures``."""

from __future__ import annotations

import json

import numpy as np

from lvlm_export.demo import PICTURES
from lvlm_export.demo.questions import one_of_each_kind
from lvlm_export.demo.scenes import make_scene
from lvlm_profiles.files import whole_file, write_whole

_PICTURES = 6
# Far below the seeds of evaluation_set, so these are other pictures.
_FIRST_SEED = 0


def main() -> None:
    """Write scene_0.png ... scene_5.png on test photographs, and questions.json."""
    PICTURES.mkdir(exist_ok=True)
    items: list[dict[str, str]] = []
    number, seed = 0, _FIRST_SEED
    while number < _PICTURES:
        scene = make_scene(seed, "test")
        # Pictures of which every kind of question can be asked.
        questions = one_of_each_kind(scene.things, np.random.default_rng(seed))
        seed += 1
        if not questions:
            continue
        name = f"scene_{number}.png"
        with whole_file(PICTURES / name) as stream:
            scene.image.save(stream, "PNG")
        for each in questions:
            items.append(
                {"image": name, "question": each.text, "answer": each.answer, "kind": each.kind}
            )
        number += 1
    write_whole(PICTURES / "questions.json", json.dumps(items, indent=1) + "\n")


if __name__ == "__main__":
    main()
