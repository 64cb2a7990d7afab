"""Pictures and labels of a pool, made on first use, and the order in which steps take them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from lvlm_export.demo.scenes import (
    COLORS,
    IMAGE_SIZE,
    MOST_OBJECTS,
    PATCH,
    SHAPES,
    Thing,
    make_scene,
    patch_owners,
)
from lvlm_export.demo.train.scenes.recipe import CHUNK, PoolRecipe
from lvlm_profiles.files import whole_file

SIDE = IMAGE_SIZE // PATCH
PARTS = 4  # a patch's parts along its edge of which a tower says whether an object is there


@dataclass(frozen=True, eq=False)
class SceneArrays:
    """N pictures with their labels.

    Attributes:
        pixels: uint8 ``[N, 112, 112, 3]``.
        owners: int8 ``[N, 196]``, as ``patch_owners`` gives them.
        shares: float32 ``[N, 196]``, how much of a patch objects fill.
        parts: uint8 ``[N, 196, 16]``, how much of each part of a patch objects fill, 0 to 255.
        things: float32 ``[N, 6, 5]``: shape, colour, x, y, size; zeros where there are fewer.
        counts: int8 ``[N]``, how many objects.
    """

    pixels: np.ndarray
    owners: np.ndarray
    shares: np.ndarray
    parts: np.ndarray
    things: np.ndarray
    counts: np.ndarray

    def take(self, rows: np.ndarray) -> SceneArrays:
        """Some of the pictures."""
        return SceneArrays(*(getattr(self, field.name)[rows] for field in fields(self)))

    def things_of(self, row: int) -> tuple[Thing, ...]:
        """The objects of one picture."""
        return tuple(
            Thing(SHAPES[int(shape)], COLORS[int(color)], float(x), float(y), float(size))
            for shape, color, x, y, size in self.things[row, : self.counts[row]]
        )


def make_arrays(recipe: PoolRecipe, first: int, n: int) -> SceneArrays:
    """Make the pictures number ``first`` to ``first + n - 1`` of a pool."""
    scenes = [
        make_scene(recipe.first_seed + first + i, recipe.split, smallest=recipe.smallest)
        for i in range(n)
    ]
    owned = [patch_owners(scene) for scene in scenes]
    things = np.zeros((n, MOST_OBJECTS, 5), np.float32)
    for row, scene in enumerate(scenes):
        for column, thing in enumerate(scene.things):
            shape, color = SHAPES.index(thing.shape), COLORS.index(thing.color)
            things[row, column] = (shape, color, thing.x, thing.y, thing.size)
    seen = np.stack([scene.visible.sum(axis=0, dtype=np.uint8) for scene in scenes])
    fine = PATCH // PARTS
    parts = seen.reshape(n, SIDE, PARTS, fine, SIDE, PARTS, fine).mean(axis=(3, 6))
    parts = parts.transpose(0, 1, 3, 2, 4).reshape(n, SIDE**2, PARTS**2)
    return SceneArrays(
        pixels=np.stack([scene.pixels for scene in scenes]),
        owners=np.stack([owners for owners, _ in owned]),
        shares=np.stack([shares for _, shares in owned]),
        parts=(parts * (255 / 16)).astype(np.uint8),
        things=things,
        counts=np.array([len(scene.things) for scene in scenes], np.int8),
    )


class ScenePool:
    """A pool's chunks as files in a directory; what is not there yet is made.

    Args:
        recipe: Which pictures.
        directory: Where the files lie.
        chunk: Pictures in each.
    """

    def __init__(self, recipe: PoolRecipe, directory: Path, chunk: int = CHUNK) -> None:
        self.name = recipe.name
        self._recipe, self._directory, self._chunk = recipe, directory, chunk
        self._held: tuple[int, SceneArrays] | None = None

    def chunk(self, number: int) -> SceneArrays:
        """All pictures of one chunk; the last one asked for is held in memory."""
        if self._held is None or self._held[0] != number:
            self._held = None  # before the next is read, so that two never lie side by side
            with np.load(self._file(number)) as stored:
                arrays = SceneArrays(*(stored[field.name] for field in fields(SceneArrays)))
            self._held = number, arrays
        return self._held[1]

    def batches(
        self, seed: int, size: int, objects: tuple[int, int], start: int = 0
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Chunk and rows ``[size]`` of each step from ``start`` on, without end.

        The order follows from the seed alone: chunks are shuffled anew in every round, and so are
        the pictures of a chunk. Pictures that do not fill a batch wait for the next round.
        """
        step, epoch = 0, 0
        while True:
            rng = np.random.default_rng([seed, epoch])
            for number in rng.permutation(self._recipe.chunks).tolist():
                counts = self._counts(number)
                wanted = np.flatnonzero((counts >= objects[0]) & (counts <= objects[1]))
                order = rng.permutation(wanted)
                for at in range(0, len(order) - size + 1, size):
                    if step >= start:
                        yield number, order[at : at + size]
                    step += 1
            epoch += 1

    def _counts(self, number: int) -> np.ndarray:
        with np.load(self._file(number)) as stored:
            counts: np.ndarray = stored["counts"]
        return counts

    def _file(self, number: int) -> Path:
        path = self._directory / f"{self._recipe.name}-{number:02d}.npz"
        if not path.exists():
            self._directory.mkdir(parents=True, exist_ok=True)
            arrays = make_arrays(self._recipe, number * self._chunk, self._chunk)
            with whole_file(path) as stream:
                np.savez(stream, **{f.name: getattr(arrays, f.name) for f in fields(arrays)})
        return path
