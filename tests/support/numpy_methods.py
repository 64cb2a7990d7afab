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


def illava_v1(tokens: Rows, scores: Rows, keep: int) -> tuple[list[int], Rows]:
    """Places and tokens of iLLaVA's merge of January 2025, as its authors' loop does it."""
    removed = len(tokens) - keep
    ranking = sorted(range(len(tokens)), key=lambda i: scores[i])
    group = ranking[: removed + 1]
    total = (removed + 1) * (removed + 2) / 2
    merged = sum((removed + 1 - i) / total * tokens[j] for i, j in enumerate(group))
    places = sorted(set(range(len(tokens))) - set(group[:removed]))
    return places, np.stack([merged if j == group[-1] else tokens[j] for j in places])


def illava(tokens: Rows, scores: Rows, keep: int, group: int = 1) -> tuple[list[int], Rows]:
    """Places and tokens of iLLaVA's current merge; tokens stay or leave in groups of neighbours."""
    ranking = np.argsort(-scores.reshape(-1, group).mean(axis=1), kind="stable")
    kept = [g * group + i for g in ranking[: keep // group].tolist() for i in range(group)]
    left = [i for i in range(len(tokens)) if i not in kept]
    out = {i: tokens[i] for i in kept}
    weakest = sorted(kept, key=lambda i: scores[i])[: max(1, round(0.05 * keep))]
    for p in weakest if left else []:
        product = {m: tokens[m] @ tokens[p] / np.sqrt(tokens.shape[1]) for m in left}
        nearest = sorted(left, key=lambda m: -product[m])[:5]
        weights = np.exp([product[m] - product[nearest[0]] for m in nearest])
        out[p] = (tokens[p] + weights @ tokens[nearest] / weights.sum()) / 2
    places = sorted(kept)
    return places, np.stack([out[i] for i in places])


def dart(tokens: Rows, keys: Rows, text: Rows, text_keys: Rows, keep: int) -> list[int]:
    """DART's kept places; ``text`` is what stands after the image, four rows or more."""
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
    """DivPrune with every distance computed again in every step."""
    count = len(tokens)
    far = lambda i, j: 1 - cosine(tokens[i], tokens[j])  # noqa: E731
    chosen = [max(range(count), key=lambda i: min(far(i, j) for j in range(count) if j != i))]
    while len(chosen) < keep:
        left = [i for i in range(count) if i not in chosen]
        chosen.append(max(left, key=lambda i: min(far(i, j) for j in chosen)))
    return sorted(chosen)


def cdpruner(tokens: Rows, text: Rows, keep: int) -> list[int]:
    """CDPruner by determinants: each step takes the token that enlarges the kernel's most.

    Tokens that repeat an earlier one come after all others, in order.
    """
    relevance = np.array([np.mean([cosine(token, word) for word in text]) for token in tokens])
    relevance = (relevance - relevance.min()) / (relevance.max() - relevance.min()) + 1e-6
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    kernel = relevance[:, None] * (unit @ unit.T) * relevance + 1e-4 * np.eye(len(tokens))
    again = [i for i in range(len(tokens)) if any(unit[i] @ unit[j] > 1 - 1e-5 for j in range(i))]
    chosen: list[int] = []
    while len(chosen) < keep:
        left = [i for i in range(len(tokens)) if i not in chosen and i not in again]
        if not left:
            return sorted(chosen + again[: keep - len(chosen)])
        volume = lambda i: np.linalg.slogdet(kernel[np.ix_([*chosen, i], [*chosen, i])])[1]  # noqa: E731
        chosen.append(max(left, key=volume))
    return sorted(chosen)


def anchors(
    tokens: Rows, keys: Rows, sizes: Rows, places: list[int], columns: int, penalty: float
) -> tuple[Rows, Rows]:
    """Tokens and sizes of the groups around given places of a grid."""
    groups: dict[int, list[int]] = {place: [] for place in places}
    for i in range(len(tokens)):
        near = {
            p: cosine(keys[i], keys[p])
            - penalty * ((i // columns - p // columns) ** 2 + (i % columns - p % columns) ** 2)
            for p in places
        }
        groups[i if i in groups else max(near, key=lambda p: near[p])].append(i)
    size = np.array([sizes[group].sum() for group in groups.values()])
    means = [sizes[group] @ tokens[group] / sizes[group].sum() for group in groups.values()]
    return np.stack(means), size


def visprune(tokens: Rows, scores: Rows, keep: int) -> list[int]:
    """VisPruner's kept places: the important half, and those without a near duplicate."""
    important = best(scores, max(1, keep // 2))
    diverse = keep - len(important)
    rest = [i for i in range(len(tokens)) if i not in important] if diverse else []
    while len(rest) > diverse:
        first, second = rest[::2], rest[1::2]
        twin = {i: max(cosine(tokens[i], tokens[j]) for j in second) for i in first}
        most = sorted(first, key=lambda i: -twin[i])[: min(8, len(rest) - diverse)]
        rest = [i for i in rest if i not in most]
    return sorted([*important, *rest])


def raters(text: Rows, visual: Rows) -> list[int]:
    """The text rows that get more of the visual tokens' attention than the mean of them."""
    share = np.zeros(len(text))
    for token in visual:
        weights = np.exp(text @ token - (text @ token).max())
        share += weights / weights.sum() / len(visual)
    return [row for row in range(len(text)) if share[row] > share.mean()]


def density_peaks(tokens: Rows, count: int) -> tuple[list[int], list[list[int]]]:
    """DPC-KNN's centres, best first, and the members of each cluster."""
    total, width = tokens.shape
    far = np.array([[np.linalg.norm(a - b) for b in tokens] for a in tokens]) / np.sqrt(width)
    density = [np.exp(-np.mean(np.sort(row**2)[:count])) - 1e-6 * i for i, row in enumerate(far)]
    apart = []
    for i in range(total):
        denser = [far[i, j] for j in range(total) if density[j] > density[i]]
        apart.append(min(denser, default=far.max()))
    peaks = [apart[i] * density[i] - 1e-6 * i for i in range(total)]
    centres = sorted(range(total), key=lambda i: -peaks[i])[:count]
    members: list[list[int]] = [[] for _ in centres]
    for i in range(total):
        nearest = min(range(count), key=lambda slot: far[i, centres[slot]])
        members[centres.index(i) if i in centres else nearest].append(i)
    return centres, members


def sparsevlm(
    tokens: Rows, attention: Rows, rating: list[int], kept: int, clusters: int
) -> tuple[list[int], Rows]:
    """Places and tokens of one SparseVLM site; ``attention [T, V]`` of the text rows."""
    scores = attention[rating].mean(axis=0)
    order = np.argsort(-scores, kind="stable").tolist()
    out = {i: tokens[i] for i in order[:kept]}
    if clusters:
        pruned = order[kept:]
        pool = sorted(pruned[: max(int(0.3 * len(pruned)) + 1, clusters)])
        centres, members = density_peaks(tokens[pool], clusters)
        for centre, cluster in zip(centres, members, strict=True):
            out[pool[centre]] = tokens[[pool[i] for i in cluster]].mean(axis=0)
    places = sorted(out)
    return places, np.stack([out[i] for i in places])


def tome(
    tokens: Rows, keys: Rows, sizes: Rows, keep: int, start: int
) -> tuple[list[int], Rows, Rows]:
    """Places, tokens and sizes after one ToMe step; ``start``: the first set's first token."""
    first = list(range(start, len(tokens), 2))
    second = list(range(1 - start, len(tokens), 2))
    partner = {i: max(second, key=lambda j: cosine(keys[i], keys[j])) for i in first}
    like = {i: cosine(keys[i], keys[partner[i]]) for i in first}
    merging = sorted(first, key=lambda i: -like[i])[: len(tokens) - keep]
    groups = {i: [i] for i in range(len(tokens)) if i not in merging}
    for i in merging:
        groups[partner[i]].append(i)
    merged = [np.average(tokens[group], axis=0, weights=sizes[group]) for group in groups.values()]
    total = [sizes[group].sum() for group in groups.values()]
    return list(groups), np.stack(merged), np.array(total)


def local(
    tokens: Rows,
    keys: Rows,
    sizes: Rows,
    stood: list[int],
    keep: int,
    grid: tuple[int, int],
    penalty: float,
) -> tuple[list[int], Rows, Rows]:
    """Places, tokens and sizes after one step of ``local``; ``stood``: the tokens' patches."""
    columns = grid[1]
    colour = lambda i: (stood[i] // columns + stood[i] % columns) % 2  # noqa: E731
    whole = len(tokens) == grid[0] * columns
    first = [i for i in range(len(tokens)) if (colour(i) if whole else i % 2) == 0]
    second = [i for i in range(len(tokens)) if i not in first]

    def like(i: int, j: int) -> float:
        down, across = (np.subtract(divmod(stood[i], columns), divmod(stood[j], columns))).tolist()
        return cosine(keys[i], keys[j]) - penalty * (down**2 + across**2)

    partner = {i: max(second, key=lambda j: like(i, j)) for i in first}
    leaving = sorted(first, key=lambda i: -like(i, partner[i]))[: len(tokens) - keep]
    groups = {i: [i] for i in range(len(tokens)) if i not in leaving}
    for i in leaving:
        groups[partner[i]].append(i)
    merged = [np.average(tokens[group], axis=0, weights=sizes[group]) for group in groups.values()]
    return list(groups), np.stack(merged), np.array([sizes[g].sum() for g in groups.values()])


def checkerboard(
    tokens: Rows, keys: Rows, keep: int, grid: tuple[int, int], penalty: float
) -> tuple[list[int], Rows]:
    """Places and tokens after evenly spaced ones of the corner's colour have joined the other."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    colour = [i for i in range(len(tokens)) if (rows[i] + columns[i]) % 2 == 0]
    others = [i for i in range(len(tokens)) if i not in colour]
    removed = len(tokens) - keep
    gone = [colour[int((n + 0.5) * len(colour) / removed)] for n in range(removed)]
    joins = {}
    for i in gone:
        steps = [(rows[i] - rows[j]) ** 2 + (columns[i] - columns[j]) ** 2 for j in others]
        pairs = zip(others, steps, strict=True)
        like = [cosine(keys[i], keys[j]) - penalty * far for j, far in pairs]
        joins[i] = others[int(np.argmax(like))]
    places = [i for i in range(len(tokens)) if i not in gone]
    groups = [[i, *(j for j in gone if joins[j] == i)] for i in places]
    return places, np.stack([tokens[group].mean(axis=0) for group in groups])


def area_resize(picture: Rows, edge: int) -> Rows:
    """A square picture ``[H, H]`` averaged over areas, sampled so finely that all is whole."""
    fine = np.kron(picture, np.ones((edge, edge)))
    cell = len(picture)
    return fine.reshape(edge, cell, edge, cell).mean(axis=(1, 3))


def outlier_share(row: Rows) -> float:
    """PruMerge's adaptive ratio: the share above the third quartile by 1.5 quartile ranges."""
    low, high = np.percentile(row, [25, 75])
    return float(np.mean(row > high + 1.5 * (high - low)))
