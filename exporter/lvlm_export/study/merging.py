"""Which tokens went into which at a reducer, found out from a bundle's own graph.

A reducer's choice rests on keys, attention and places, and what it gives are weighted sums of what it
took. So the graph itself is asked: it runs again with everything as it was, but unit vectors in place
of the tokens, and what comes out are the weights. Where the choice rests on the tokens themselves, other
tokens would be chosen among; then the weights are solved from what went in and came out. Both are
compared with what came out, and weights that do not give it are not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime.backends import Backend, Runner
from lvlm_runtime.chain.recorder import Reduced

Rows = NDArray[np.float64]
Places = NDArray[np.int64]

# Relative to the largest value: weights are right that give what came out so nearly.
TOLERANCE = {np.dtype(np.float32): 1e-3, np.dtype(np.float16): 2e-2}
# A solution whose tokens are more alike than this would be rounding.
CONDITION = 1e4
# What is less of a token than this is noise of a solution; of an answer of the graph, none.
NOISE, NONE = 1e-3, 1e-7


@dataclass(frozen=True)
class Merge:
    """One picture's tokens at a site.

    Attributes:
        places: ``[K]``, places among the tokens before the site; -1 for one that is no single token.
        joins: ``[N]``, for every token before the site the one after it that it went into, the largest
            part of it where it went into several; -1 where it was dropped. None where it cannot be told.
    """

    places: Places
    joins: Places | None


@dataclass(frozen=True)
class _Rows:
    """Where a picture's tokens stand in what a reducer takes and gives.

    Attributes:
        name: Of the tokens.
        before: ``[N]``.
        after: ``[K]``.
    """

    name: str
    before: Places
    after: Places


def find_merges(reduced: Reduced, backend: Backend, prefix: int, tiles: int) -> Merge:
    """As ``find_merge`` for all tiles of a picture, their tokens one after another.

    Args:
        reduced: The call, before anything else ran; one of the tower has a row for every tile.
        backend: What holds its values.
        prefix: As of ``find_merge``.
        tiles: Rows to look at, from the first on.
    """
    parts = [find_merge(reduced, backend, prefix, tile) for tile in range(tiles)]
    joins = [each.joins for each in parts]
    known = [each for each in joins if each is not None]
    before = len(known[0]) if known else _count(reduced, backend, prefix)
    places = [
        np.where(each.places >= 0, each.places + tile * before, -1)
        for tile, each in enumerate(parts)
    ]
    if len(known) < tiles:
        return Merge(np.concatenate(places), None)
    kept = len(parts[0].places)
    joined = [np.where(each >= 0, each + tile * kept, -1) for tile, each in enumerate(known)]
    return Merge(np.concatenate(places), np.concatenate(joined))


def find_packing(
    packer: Runner, backend: Backend, features: tuple[int, int, int], dtype: str, sized: bool
) -> Merge:
    """Which of the tiles' tokens became which of an image's, asked of the packer's own graph.

    It is linear but for the newlines, which it adds: unit vectors go in, and weights come out.

    Args:
        packer: Graph from ``features [tiles, K, D]`` to ``[1, V, D]``.
        backend: What runs it.
        features: Shape of the features.
        dtype: Their element type.
        sized: It takes the sizes of the tokens too.
    """
    tiles, kept, width = features
    count = tiles * kept
    named = {"features": backend.put(np.zeros(features, dtype))}
    if sized:
        named["sizes"] = backend.put(np.ones((tiles, kept), dtype))

    def packed(values: NDArray[np.floating]) -> Rows:
        out = packer({**named, "features": backend.put(values)})
        rows: Rows = backend.fetch(out["visual"])[0].astype(np.float64)
        return rows

    nothing = packed(np.zeros(features, dtype))
    parts = []
    for start in range(0, count, width):
        some = np.arange(start, min(start + width, count))
        units = np.zeros((count, width), dtype)
        units[some, np.arange(len(some))] = 1
        parts.append((packed(units.reshape(features)) - nothing)[:, : len(some)])
    weights = np.concatenate(parts, axis=1)
    places = np.where(weights.max(axis=1) > NOISE, weights.argmax(axis=1), -1)
    return Merge(places, joins_of(weights, places, NOISE))


def find_merge(reduced: Reduced, backend: Backend, prefix: int, tile: int = 0) -> Merge:
    """What a reducer did with the tokens of one row, the first picture's or one tile of it.

    Args:
        reduced: The call, before anything else ran.
        backend: What holds its values.
        prefix: Leading tokens (CLS) of a site in the vision tower.
        tile: The row.
    """
    places = _places(reduced, backend, tile)
    if "pixel_values" in reduced.inputs:
        return Merge(places, _areas(reduced, backend, len(places)))
    rows = _rows(reduced, backend, len(places), prefix)
    tokens = backend.fetch(reduced.inputs[rows.name])[tile]
    near = TOLERANCE[tokens.dtype]
    before = tokens[rows.before].astype(np.float64)
    after = backend.fetch(reduced.outputs[rows.name + "_out"])[tile, rows.after].astype(np.float64)
    if not len(places):
        return Merge(places, np.full(len(before), -1))
    weights = _asked(reduced, backend, rows, places, tile)
    if weights is not None and _gives(weights, before, after, near):
        return Merge(places, joins_of(weights, places, NONE))
    weights = solve(before, after, places, near)
    return Merge(places, None if weights is None else joins_of(weights, places, NOISE))


def joins_of(weights: Rows, places: Places, least: float) -> Places:
    """``[N]``: where the largest weight of ``weights [K, N]`` above ``least`` is; -1 where none is."""
    joins = np.where(weights.max(axis=0) > least, weights.argmax(axis=0), -1)
    kept = np.flatnonzero(places >= 0)
    joins[places[kept]] = kept
    return joins


def solve(before: Rows, after: Rows, places: Places, near: float) -> Rows | None:
    """Weights ``[K, N]`` with which tokens ``before [N, C]`` give those ``after [K, C]``.

    A token that stays as it was took in nothing. Another is a sum of itself and of what left.

    Returns:
        None where too many left, or they are too much alike, to tell.
    """
    weights = np.zeros((len(after), len(before)))
    left = np.setdiff1d(np.arange(len(before)), places)
    for row, place in enumerate(places.tolist()):
        if place >= 0 and np.allclose(after[row], before[place], atol=near * np.abs(before).max()):
            weights[row, place] = 1.0
            continue
        among = left if place < 0 else np.append(left, place)
        found, _, rank, singular = np.linalg.lstsq(before[among].T, after[row], rcond=None)
        if rank < len(among) or singular[0] > CONDITION * singular[-1]:
            return None
        weights[row, among] = found
    return weights if _gives(weights, before, after, near) else None


def _gives(weights: Rows, before: Rows, after: Rows, near: float) -> bool:
    return bool(np.abs(weights @ before - after).max() <= near * np.abs(after).max())


def _count(reduced: Reduced, backend: Backend, prefix: int) -> int:
    """Tokens of a row before a site in the tower."""
    return int(backend.shape(reduced.inputs["hidden"])[1]) - prefix


def _places(reduced: Reduced, backend: Backend, tile: int) -> Places:
    if "places" not in reduced.outputs:
        return np.zeros(0, np.int64)
    places: Places = backend.fetch(reduced.outputs["places"])[tile]
    return places


def _rows(reduced: Reduced, backend: Backend, kept: int, prefix: int) -> _Rows:
    """Where the first picture's tokens stand."""
    if "visual" in reduced.inputs:
        count = backend.shape(reduced.inputs["visual"])[1]
        return _Rows("visual", np.arange(count), np.arange(kept))
    count = backend.shape(reduced.inputs["hidden"])[1]
    if "order" not in reduced.inputs:
        return _Rows("hidden", np.arange(prefix, count), prefix + np.arange(kept))
    visual = backend.fetch(reduced.inputs["visual_index"])[0]
    # The order is one of the old rows, followed by the reduced ones.
    place = backend.fetch(reduced.inputs["order"]) - count
    after = np.flatnonzero((place >= 0) & (place < kept))
    return _Rows("hidden", visual, after)


def _asked(
    reduced: Reduced, backend: Backend, rows: _Rows, places: Places, tile: int
) -> Rows | None:
    """Weights ``[K, N]`` that the graph gives for unit vectors; None where they move its choice."""
    units = backend.fetch(reduced.inputs[rows.name])
    width, parts = units.shape[-1], []
    for start in range(0, len(rows.before), width):
        some = rows.before[start : start + width]
        units[tile, rows.before] = 0
        units[tile, some, np.arange(len(some))] = 1
        out = reduced.runner({**reduced.inputs, rows.name: backend.put(units)})
        if not np.array_equal(backend.fetch(out["places"])[tile], places):
            return None
        parts.append(backend.fetch(out[rows.name + "_out"])[tile, rows.after, : len(some)])
    return np.concatenate(parts, axis=1).astype(np.float64)


def _areas(reduced: Reduced, backend: Backend, kept: int) -> Places:
    """For every patch of a picture the patch of a smaller one, a square too, that has its middle."""
    before = backend.shape(reduced.inputs["pixel_values"])[-1]
    after = backend.shape(reduced.outputs["pixel_values_out"])[-1]
    small = int(kept**0.5)
    side = small * before // after
    at = (2 * np.arange(side) + 1) * small // (2 * side)
    joins: Places = (at[:, None] * small + at).ravel()
    return joins
