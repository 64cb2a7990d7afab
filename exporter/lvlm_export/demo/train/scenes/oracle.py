"""The gate after the language stages: does keeping objects pay in every kind of question?

An oracle that knows which patches show objects is compared with keeping patches at random, at the same
places and counts. Where the oracle does not win, no method that looks for objects can.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvlm_export.demo.questions import KINDS, SceneQuestion, one_of_each_kind
from lvlm_export.demo.train.objectives import answer_loss
from lvlm_export.demo.train.scenes.pools import SceneArrays
from lvlm_export.demo.train.scenes.reduced import Score, reduced_features
from lvlm_export.demo.train.scenes.text import PackedScenes, ScenePacker
from lvlm_export.demo.train.scenes.tower import pixel_tensor

KEPT = {2: 149, 3: 113, 4: 86, 5: 65}
"""Layer of the tower, counted from 0, to how many of 196 patches are kept: a third in the end."""

PICTURES = 2048
_BATCH = 32


@torch.no_grad()
def oracle_gate(
    model: Any, processor: Any, arrays: SceneArrays, pictures: int = PICTURES
) -> dict[str, Any]:
    """Ask questions with all patches, with those that show most of objects, and with random ones.

    Args:
        model: The trained model.
        processor: Its processor.
        arrays: Pictures that training does not see.
        pictures: How many of them; those without a question of some kind are left out.

    Returns:
        Per kind, right answers of each arm, the difference oracle - random in points and half the
        width of its 95 % interval (paired by question); ``failed``: kinds in which the oracle does
        not win, in words.
    """
    hits: dict[str, dict[str, list[bool]]] = {
        arm: {kind: [] for kind in KINDS} for arm in ("unreduced", "oracle", "random")
    }
    generator = torch.Generator().manual_seed(0)
    for rows in np.split(np.arange(pictures), range(_BATCH, pictures, _BATCH)):
        taken = arrays.take(rows)
        asked = [_asked(taken, row) for row in range(len(rows))]
        used = np.array([row for row, questions in enumerate(asked) if questions], int)
        if not len(used):
            continue
        taken, questions = taken.take(used), [asked[row] for row in used]
        shares = torch.from_numpy(taken.shares)
        for arm, found in hits.items():
            sites = {} if arm == "unreduced" else KEPT
            score = _score(shares if arm == "oracle" else torch.zeros_like(shares), generator)
            features, places = reduced_features(
                model.model.vision_tower, pixel_tensor(taken.pixels), sites, score
            )
            batch = ScenePacker(processor, features.shape[1]).pack(questions)
            positions = kept_positions(batch, places, model.config.image_token_id, shares.shape[1])
            batch = replace(batch, position_ids=positions)
            _, right = answer_loss(model, features, batch, per_question=True)
            for kind, hit in zip(batch.kinds, right.tolist(), strict=True):
                found[kind].append(hit)
    return _compared(hits)


def kept_positions(batch: PackedScenes, places: Tensor, image_token: int, patches: int) -> Tensor:
    """Positions of rows whose visual tokens keep the places that they had among all patches.

    That is how a chain runs: the text behind a picture goes on as if no token had left. A model that
    never saw a picture of other length loses places, in every arm, when tokens are counted anew.

    Args:
        batch: Rows with K visual tokens, counted one after another.
        places: ``[B, K]``, ascending.
        image_token: Its id.
        patches: Of the whole picture.

    Returns:
        int64 ``[B, L]``.
    """
    visual = batch.input_ids == image_token
    before = int(visual[0].long().argmax())
    behind = (batch.position_ids >= before + places.shape[1]) & ~visual
    positions = batch.position_ids + behind * (patches - places.shape[1])
    return positions.masked_scatter(visual, before + places)


def _asked(arrays: SceneArrays, row: int) -> list[SceneQuestion]:
    """One question of each kind about a picture, or none where some kind has none."""
    rng = np.random.default_rng(arrays.things[row].astype(np.int64).sum())
    return one_of_each_kind(arrays.things_of(row), rng)


def _score(shares: Tensor, generator: torch.Generator) -> Score:
    """How much of a patch objects fill; equal ones at random."""

    def score(received: Tensor, places: Tensor) -> Tensor:
        drawn = torch.rand(received.shape, generator=generator)
        return shares.gather(1, places) + 1e-3 * drawn

    return score


def _compared(hits: dict[str, dict[str, list[bool]]]) -> dict[str, Any]:
    kinds: dict[str, Any] = {}
    for kind in (*KINDS, "all"):
        arms = {
            arm: np.array([hit for k, found in of.items() if kind in (k, "all") for hit in found])
            for arm, of in hits.items()
        }
        difference = arms["oracle"].astype(int) - arms["random"].astype(int)
        kinds[kind] = {
            "questions": len(difference),
            **{arm: int(found.sum()) for arm, found in arms.items()},
            "oracle_minus_random": round(100 * float(difference.mean()), 2),
            "interval": round(196 * float(difference.std()) / math.sqrt(len(difference)), 2),
        }
    failed = [
        f"the oracle has {of['oracle']} of {of['questions']} right in {kind}, random {of['random']}"
        for kind, of in kinds.items()
        if of["oracle"] <= of["random"]
    ]
    return {"kept": {str(layer): n for layer, n in KEPT.items()}, "kinds": kinds, "failed": failed}
