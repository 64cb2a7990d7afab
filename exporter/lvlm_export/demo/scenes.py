"""Scenes: one to six coloured shapes of very different sizes anywhere on a varied background.

``make_scene(seed, split)`` gives the same picture with every processor and every version of numpy and
Pillow: whole numbers are drawn, and what is computed with them is whole-number arithmetic or single
additions, multiplications and divisions, which IEEE 754 rounds alike everywhere.

Shapes may overlap and reach over the picture's edge; at least three quarters of each stay visible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from lvlm_export.demo.backgrounds import SPLITS, Split, make_background

IMAGE_SIZE = 112
"""Width and height of a scene in pixels."""

PATCH = 8
"""Width and height of the vision tower's patches, by which ``patch_owners`` speaks."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS: tuple[str, ...] = ("red", "green", "blue", "yellow", "purple", "cyan", "white", "black")

SIZES: tuple[float, ...] = tuple(round(96 * 3 ** (step / 24)) / 16 for step in range(25))
"""Radii in pixels that objects have: 6 to 18 in equal ratios, multiples of 1/16."""

MOST_OBJECTS = 6
VISIBLE_SHARE = 0.75
"""At least so much of every object's area is neither covered nor beyond the edge."""

OWNED_SHARE, BACKGROUND_SHARE = 0.25, 0.05
"""A patch is an object's where it fills a quarter; background where all together fill less than 5 %."""

BACKGROUND, UNCLEAR = -1, -2

_RGB: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 30),
    "green": (30, 160, 45),
    "blue": (35, 60, 215),
    "yellow": (240, 220, 30),
    "purple": (150, 40, 180),
    "cyan": (40, 205, 215),
    "white": (248, 248, 248),
    "black": (12, 12, 12),
}
_MOST_COVERED = 0.24  # share of the picture: with 65 of 196 patches every object's can be kept
_FINE = 4  # points along a pixel's edge at which a shape is sampled
_FULL = _FINE**2
_TRIALS = 30
_GAP_OF_ONE_COLOR = (
    1.4  # times the sum of the radii: two objects of a colour must not look like one
)
_GAP = 0.65
_PATCH_OF = np.repeat(np.eye(IMAGE_SIZE // PATCH, dtype=np.float32), PATCH, axis=0)


@dataclass(frozen=True)
class Thing:
    """One object.

    Attributes:
        shape: One of SHAPES.
        color: One of COLORS.
        x: Of its centre, pixels from the left.
        y: Of its centre, pixels from the top.
        size: Radius in pixels of a circle of about its area.
    """

    shape: str
    color: str
    x: float
    y: float
    size: float


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture and what it shows.

    Attributes:
        pixels: uint8 RGB ``[112, 112, 3]``.
        things: The objects; a later one covers an earlier one.
        visible: uint8 ``[len(things), 112, 112]``, how much of a pixel an object is seen in, in
            sixteenths.
    """

    pixels: np.ndarray
    things: tuple[Thing, ...]
    visible: np.ndarray

    @cached_property
    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)


def make_scene(seed: int, split: Split, *, smallest: float = SIZES[0]) -> Scene:
    """Make the scene of a seed.

    Args:
        seed: Any non-negative integer; the same seed and split give the same picture.
        split: Whose photographs to use. Pictures of "test" share none with pictures of "train".
        smallest: Radius in pixels below which no object is; training begins with large ones.

    Raises:
        ValueError: No size is as large as ``smallest``.
    """
    sizes = [size for size in SIZES if size >= smallest]
    if not sizes:
        raise ValueError(f"smallest={smallest}: objects are at most {SIZES[-1]:g} pixels in radius")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    canvas = make_background(rng, split, IMAGE_SIZE)
    drawn = None
    while drawn is None:
        drawn = _layout(rng, sizes)
    things, covers = drawn
    for thing, cover in zip(things, covers, strict=True):
        color = np.array(_RGB[thing.color]) + rng.integers(-14, 15, 3)
        # A slight shade from side to side, so that an object is not one flat value.
        strength = rng.integers(-14, 15)
        hit = cover.nonzero()
        shade = strength * (2 * hit[1] - (IMAGE_SIZE - 1)) // IMAGE_SIZE
        before, part = canvas[hit], cover[hit][:, None].astype(np.int32)
        canvas[hit] = before + part * (color + shade[:, None] - before) // _FULL
    canvas += rng.integers(-4, 5, (2, *canvas.shape), np.int32).sum(axis=0, dtype=np.int32)
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), things, _visible(covers))


def patch_owners(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Which object each patch shows.

    Returns:
        int8 ``[196]``, the number of the object that fills most of a patch and at least a quarter,
        BACKGROUND or UNCLEAR; and float32 ``[196]``, how much of a patch objects fill.
    """
    shares = _patch_shares(scene.visible)
    total = shares.sum(axis=0)
    owners = np.where(total < BACKGROUND_SHARE, BACKGROUND, UNCLEAR)
    owners = np.where(shares.max(axis=0) >= OWNED_SHARE, shares.argmax(axis=0), owners)
    return owners.astype(np.int8), total.astype(np.float32)


def _patch_shares(visible: np.ndarray) -> np.ndarray:
    """How much of a patch ``[n, 196]`` each object fills, 0 to 1."""
    # Products of small whole numbers: exact in float32, in whatever order they are added.
    sums = _PATCH_OF.T @ visible.astype(np.float32) @ _PATCH_OF
    shares: np.ndarray = sums.reshape(len(visible), -1) / (PATCH**2 * _FULL)
    return shares


def _layout(
    rng: np.random.Generator, sizes: Sequence[float]
) -> tuple[tuple[Thing, ...], list[np.ndarray]] | None:
    """Objects and how much of each pixel they cover, or None where they do not fit."""
    count = int(rng.integers(1, MOST_OBJECTS, endpoint=True))
    # Few shapes and colours per picture, so that they repeat and neither alone names an object.
    shapes = rng.permutation(len(SHAPES))[: rng.integers(2, 5)]
    colors = rng.permutation(len(COLORS))[: rng.integers(2, 5)]
    radii = [sizes[i] for i in rng.integers(len(sizes), size=count)]
    if 3.2 * sum(radius * radius for radius in radii) > _MOST_COVERED * IMAGE_SIZE**2:
        return None
    things: list[Thing] = []
    covers: list[np.ndarray] = []
    areas: list[int] = []
    for radius in radii:
        shape, color = SHAPES[rng.choice(shapes)], COLORS[rng.choice(colors)]
        for _ in range(_TRIALS):
            x, y = (int(part) / 16 for part in rng.integers(0, 16 * IMAGE_SIZE, 2))
            thing = Thing(shape, color, x, y, radius)
            if any(_too_near(thing, other) for other in things):
                continue
            cover, area = _cover(thing, int(rng.integers(-32, 33)) / 243)
            if _all_are_seen([*covers, cover], [*areas, area]):
                break
        else:
            return None
        things.append(thing)
        covers.append(cover)
        areas.append(area)
    return tuple(things), covers


def _too_near(one: Thing, other: Thing) -> bool:
    gap = _GAP_OF_ONE_COLOR if one.color == other.color else _GAP
    reach = gap * (one.size + other.size)
    across, down = one.x - other.x, one.y - other.y
    return across * across + down * down < reach * reach


def _all_are_seen(covers: Sequence[np.ndarray], areas: Sequence[int]) -> bool:
    """Enough of every object is visible, and each has a patch of its own."""
    visible = _visible(covers)
    seen = visible.sum(axis=(1, 2), dtype=np.int64)
    if any(part < VISIBLE_SHARE * area for part, area in zip(seen.tolist(), areas, strict=True)):
        return False
    return bool((_patch_shares(visible).max(axis=1) >= OWNED_SHARE).all())


def _visible(covers: Sequence[np.ndarray]) -> np.ndarray:
    """What of each object later ones leave, uint8 ``[n, 112, 112]`` in sixteenths."""
    left = np.full((IMAGE_SIZE, IMAGE_SIZE), _FULL, np.uint8)
    visible = []
    for cover in reversed(covers):
        visible.append(np.minimum(cover, left))
        left = left - visible[-1]
    return np.stack(visible[::-1])


def _polygon(*corners: tuple[float, float]) -> tuple[tuple[float, float, float, float], ...]:
    """Edges (x1, y1, x2, y2) of a polygon given as (radius, degrees); level ones are never crossed."""
    points = [
        (
            round(radius * math.cos(math.radians(angle)), 4),
            round(radius * math.sin(math.radians(angle)), 4),
        )
        for radius, angle in corners
    ]
    edges = zip(points, [*points[1:], points[0]], strict=True)
    return tuple((*start, *end) for start, end in edges if start[1] != end[1])


_POLYGONS = {
    "square": _polygon(*((1.25, 45 + 90 * k) for k in range(4))),
    "triangle": _polygon(*((1.45, -90 + 120 * k) for k in range(3))),
    "star": _polygon(*(((1.5, 0.65)[k % 2], -90 + 36 * k) for k in range(10))),
    # Arms 0.84 wide and 1.25 long: two outer corners and one inner corner each.
    "cross": _polygon(
        *(
            (radius, angle + 90 * k)
            for k in range(4)
            for radius, angle in ((1.3187, -18.57), (1.3187, 18.57), (0.594, 45.0))
        )
    ),
}


def _cover(thing: Thing, turn: float) -> tuple[np.ndarray, int]:
    """How much of each pixel an object covers, in sixteenths, and its whole area in the same unit.

    Args:
        thing: The object.
        turn: Tangent of half the angle by which it is turned.
    """
    half = math.ceil(1.5 * thing.size) + 1
    left, top = int(thing.x) - half, int(thing.y) - half
    points = (np.arange(2 * half * _FINE) + 0.5) / _FINE
    across = ((points + left - thing.x) / thing.size)[None, :]
    down = ((points + top - thing.y) / thing.size)[:, None]
    cosine, sine = (1 - turn * turn) / (1 + turn * turn), 2 * turn / (1 + turn * turn)
    u, v = cosine * across + sine * down, cosine * down - sine * across
    inside = _inside(thing.shape, u, v)
    fine = inside.view(np.uint8)
    # Slices that are added: several times faster than a sum over two axes.
    points_of_rows = fine[0::_FINE] + fine[1::_FINE] + fine[2::_FINE] + fine[3::_FINE]
    box = points_of_rows[:, 0::_FINE] + points_of_rows[:, 1::_FINE]
    box = box + points_of_rows[:, 2::_FINE] + points_of_rows[:, 3::_FINE]
    cover = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    rows = slice(max(top, 0), min(top + 2 * half, IMAGE_SIZE))
    columns = slice(max(left, 0), min(left + 2 * half, IMAGE_SIZE))
    cover[rows, columns] = box[
        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
    ]
    return cover, int(box.sum())


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points lie in a shape of size 1 around the origin."""
    if shape in ("circle", "ring"):
        distance = u * u + v * v
        inside: np.ndarray = distance <= (1.0 if shape == "circle" else 1.44)
        return inside if shape == "circle" else inside & (distance >= 0.36)
    inside = np.zeros(u.shape, bool)
    for x1, y1, x2, y2 in _POLYGONS[shape]:
        crosses = (y1 > v) != (y2 > v)
        inside ^= crosses & (u < (x2 - x1) * (v - y1) / (y2 - y1) + x1)
    return inside
