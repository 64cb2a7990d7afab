"""What becomes of a picture's patches at each site of a chain, as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lvlm_export.study.merging import Merge, Places
from lvlm_runtime.bundle.manifest import Reduction

# A patch whose token stays as it was; that is part of a token with others; that is merged here, into
# which one cannot be told; that is dropped here, with all that it is part of; that left before.
CLEAR, GROUPED, MERGING, DROPPING, GONE = range(5)


@dataclass(frozen=True)
class Panel:
    """One site.

    Attributes:
        title: The site's name.
        looks: ``[N]`` of CLEAR, GROUPED, MERGING, DROPPING and GONE.
        groups: ``[N]``, for every patch the place of the token that it is part of after the site, N and
            up for one of no single patch, -1 for none. Where it cannot be told, only its own.
        caption: What the panel shows, in one line.
        columns: Patches of a row of the picture; 0 where it is a square of them.
    """

    title: str
    looks: NDArray[np.int64]
    groups: Places
    caption: str
    columns: int = 0


def make_panels(
    patches: int,
    reductions: Sequence[Reduction],
    merges: Mapping[str, Merge],
    columns: int = 0,
) -> list[Panel]:
    """The sites in the order tokens pass them.

    Args:
        patches: N, before the first.
        reductions: What a budget does at its sites.
        merges: By site, what became of its tokens.
        columns: As ``Panel`` has it.
    """
    current = groups = np.arange(patches)
    told = True
    result = []
    for reduction in reductions:
        before, merge = current, merges[reduction.site]
        kept = merge.places
        assert len(kept) == reduction.tokens_out, f"{reduction.site} keeps {len(kept)} places"
        current = np.where(kept >= 0, before[np.maximum(kept, 0)], -1)
        stays, left = current[current >= 0], np.setdiff1d(before[before >= 0], current)
        joins, earlier, merged = merge.joins, groups, len(left) if reduction.merges else 0
        told = told and joins is not None
        if told and joins is not None:
            groups = _regroup(groups, before, current, joins)
            looks = _looks(earlier, groups)
            merged = int(np.isin(before[joins >= 0], left).sum())
        else:
            groups = np.full(patches, -1)
            groups[stays] = stays
            looks = np.full(patches, GONE)
            looks[left] = MERGING if reduction.merges else DROPPING
            looks[stays] = CLEAR
        extra = int((current < 0).sum())
        caption = _caption(len(stays), extra, merged, len(left) - merged)
        result.append(Panel(reduction.site, looks, groups, caption, columns))
    return result


def _caption(stay: int, extra: int, merged: int, dropped: int) -> str:
    words = [f"{stay} patches stay" + f" and {extra} of no single patch" * bool(extra)]
    words += [f"{merged} are merged"] * bool(merged)
    words += [f"{dropped} are dropped"] * bool(dropped or not merged)
    return ", ".join(words)


def _regroup(groups: Places, before: Places, current: Places, joins: Places) -> Places:
    """Groups after a site; tokens are named by their places, those without by N and their order."""
    patches = len(groups)
    old, new = (np.where(at >= 0, at, patches + np.arange(len(at))) for at in (before, current))
    became = np.full(2 * patches + 1, -1)  # the last is for patches that are part of none
    became[old] = np.append(new, -1)[joins]
    return became[groups]


def _looks(earlier: Places, groups: Places) -> NDArray[np.int64]:
    """What the groups show: how many patches a token stands for, and which left with it."""
    together = np.bincount(groups[groups >= 0], minlength=int(groups.max(initial=-1)) + 1)
    # A token of no single patch is shown where its patches are, be it one.
    alone = (groups == np.arange(len(groups))) & (np.append(together, 0)[groups] == 1)
    looks = np.where(alone, CLEAR, GROUPED)
    looks[groups < 0] = DROPPING
    looks[earlier < 0] = GONE
    return looks
