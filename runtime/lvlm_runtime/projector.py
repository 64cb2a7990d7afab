"""What a manifest says of a trained projector."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Projector:
    """A trained projector with a token count of its own.

    Attributes:
        graph: Its file.
        tokens: Visual tokens that it gives per picture.
        inputs: ``features`` and, where it reads the question, ``query``.
    """

    graph: str
    tokens: int
    inputs: tuple[str, ...]

    @property
    def reads_text(self) -> bool:
        """It takes the question's last hidden state."""
        return "query" in self.inputs
