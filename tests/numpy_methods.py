"""Every method as a plain numpy statement of one image: loops, sorts and sets, no torch.

Written from shared METHODS, independently of the graphs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


def best(scores: Rows, keep: int) -> list[int]:
    """Places of the highest scores, ascending."""
    return sorted(np.argsort(-scores, kind="stable")[:keep].tolist())


def cosine(one: Rows, other: Rows) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def dart(tokens: Rows, keys: Rows, text: Rows, text_keys: Rows, keep: int) -> list[int]:
    """DART's kept places."""
    by_norm = lambda rows: np.argsort(-np.abs(rows).sum(axis=1), kind="stable")[:4]  # noqa: E731
    visual = by_norm(keys).tolist()
    pivots = [tokens[i] for i in visual] + [text[i] for i in by_norm(text_keys)]
    kept, left = set(visual), [i for i in range(len(tokens)) if i not in visual]
    share, rest = divmod(keep - 4, 8)
    for turn, pivot in enumerate(pivots):
        left.sort(key=lambda i: cosine(tokens[i], pivot))
        quota = share + (turn < rest)
        kept |= set(left[:quota])
        left = left[quota:]
    return sorted(kept)


def visionzip(
    tokens: Rows, scores: Rows, keys: Rows, dominant: int, contextual: int
) -> tuple[list[int], Rows]:
    """Places and tokens of VisionZip without the CLS token, in raster order."""
    kept = {i: tokens[i] for i in best(scores, dominant)}
    rest = [i for i in range(len(tokens)) if i not in kept]
    step = len(rest) // contextual if contextual else 1
    targets = [rest[i * step] for i in range(contextual)]
    joined: dict[int, list[int]] = {i: [] for i in targets}
    for i in rest:
        if targets and i not in joined:
            joined[max(targets, key=lambda t: cosine(keys[i], keys[t]))].append(i)
    for target, others in joined.items():
        mean = tokens[others].mean(axis=0) if others else 0.0
        kept[target] = tokens[target] + mean
    places = sorted(kept)
    return places, np.stack([kept[i] for i in places])


def prumerge(tokens: Rows, scores: Rows, keys: Rows, kept: list[int]) -> Rows:
    """PruMerge's K-1 merged tokens and the appended one."""
    out = []
    for i in kept:
        others = [j for j in range(len(tokens)) if j != i]
        near = sorted(others, key=lambda j: -cosine(keys[i], keys[j]))[:32]
        out.append(tokens[i] + sum(scores[j] * tokens[j] for j in near))
    pruned = [j for j in range(len(tokens)) if j not in kept]
    out.append(sum(scores[j] * tokens[j] for j in pruned))
    return np.stack(out)


def divprune(tokens: Rows, keep: int) -> list[int]:
    """DivPrune with every distance looked at again in every step."""
    count = len(tokens)
    far = lambda i, j: 1 - cosine(tokens[i], tokens[j])  # noqa: E731
    chosen = [max(range(count), key=lambda i: min(far(i, j) for j in range(count) if j != i))]
    while len(chosen) < keep:
        left = [i for i in range(count) if i not in chosen]
        chosen.append(max(left, key=lambda i: min(far(i, j) for j in chosen)))
    return sorted(chosen)


def cdpruner(tokens: Rows, text: Rows, keep: int) -> list[int]:
    """CDPruner by determinants: each step takes the token that enlarges the kernel's most."""
    relevance = np.array([np.mean([cosine(token, word) for word in text]) for token in tokens])
    relevance = (relevance - relevance.min()) / (relevance.max() - relevance.min()) + 1e-6
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    kernel = relevance[:, None] * (unit @ unit.T) * relevance + 1e-4 * np.eye(len(tokens))
    chosen: list[int] = []
    while len(chosen) < keep:
        left = [i for i in range(len(tokens)) if i not in chosen]
        volume = lambda i: np.linalg.slogdet(kernel[np.ix_([*chosen, i], [*chosen, i])])[1]  # noqa: E731
        chosen.append(max(left, key=volume))
    return sorted(chosen)
