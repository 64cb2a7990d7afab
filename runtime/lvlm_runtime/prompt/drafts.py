"""Drafts of what comes next, for a decoder that verifies several tokens in one call.

An n-gram draft is what followed the last tokens where they stood before, in the prompt or in the
answer: no weights, right wherever an answer repeats itself or its question. Source: prompt lookup
decoding, ``prompt_lookup_num_tokens`` of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lvlm_runtime.errors import UsageError

# Longest run of last tokens that is looked for.
LONGEST = 3
# A call of the decode engines takes 16 rows: the last token and its drafts.
MOST = 15


def parse_speculation(text: str) -> int:
    """``ngram:K`` -> K.

    Raises:
        UsageError: Another kind of draft, or K out of range.

    Example:
        >>> parse_speculation("ngram:4")
        4
    """
    match = re.fullmatch(r"ngram:(\d{1,3})", text.strip())
    count = int(match[1]) if match else 0
    if not 1 <= count <= MOST:
        raise UsageError(f"cannot speculate with {text!r}; write ngram:K with K from 1 to {MOST}")
    return count


class NgramDrafts:
    """Drafts for one answer.

    Args:
        count: Most tokens of a draft.
        never: Ids that are no text, as that of a picture's tokens; a draft ends before them.
    """

    def __init__(self, count: int, never: frozenset[int] = frozenset()) -> None:
        self.count = count
        self.never = never
        self._ends: dict[tuple[int, ...], int] = {}
        self._seen = 0

    def propose(self, ids: Sequence[int], most: int) -> list[int]:
        """What may follow.

        Args:
            ids: Prompt and answer so far; every call's begin with those of the call before.
            most: Tokens that there is room for.

        Returns:
            At most ``count`` and ``most`` ids; none where the last token is a new one.

        Example:
            >>> NgramDrafts(3).propose([7, 8, 9, 4, 7, 8], 9)
            [9, 4, 7]
        """
        for end in range(self._seen, len(ids)):
            for size in range(1, min(LONGEST, end) + 1):
                self._ends[tuple(ids[end - size : end])] = end
        self._seen = len(ids)
        for size in range(min(LONGEST, len(ids)), 0, -1):
            found_at = self._ends.get(tuple(ids[len(ids) - size :]))
            if found_at is not None:
                found = ids[found_at : found_at + min(self.count, most)]
                stop = next((i for i, each in enumerate(found) if each in self.never), len(found))
                return list(found[:stop])
        return []
