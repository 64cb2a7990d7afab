"""Texts that end an answer, found while it comes, wherever its tokens are cut."""

from __future__ import annotations

from collections.abc import Sequence

from lvlm_runtime.errors import UsageError


def stop_texts(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One text or several, as a tuple.

    Raises:
        UsageError: One is empty or no text.

    Example:
        >>> stop_texts("###"), stop_texts(["a", "b"]), stop_texts(())
        (('###',), ('a', 'b'), ())
    """
    texts = (stop,) if isinstance(stop, str) else tuple(stop)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise UsageError(f"stop has {text!r}, a text of 1 character or more is needed")
    return texts


class StopTexts:
    """Holds back what may be the beginning of a text that ends the answer.

    Args:
        texts: Those texts.

    Attributes:
        found: One has come; everything from its first character on is left out.

    Example:
        >>> stops = StopTexts(["END"])
        >>> stops.push("the E"), stops.push("xit E"), stops.push("ND of"), stops.found
        ('the ', 'Exit ', '', True)
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = tuple(texts)
        self.found = False
        self._held = ""

    def push(self, piece: str) -> str:
        """What of the answer is certain now, ``piece`` being its next characters."""
        if self.found:
            return ""
        text = self._held + piece
        # What ends first has come first, however the answer is cut into pieces.
        ends = [(at + len(each), at) for each in self.texts if (at := text.find(each)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        cut = len(text) - max((overlap(text, each) for each in self.texts), default=0)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held back for nothing; the answer is over."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that are the beginning of another, which is not in it.

    Example:
        >>> overlap("x##", "###"), overlap("x", "###")
        (2, 0)
    """
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
