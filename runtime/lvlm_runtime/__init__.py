"""Run lvlm-export bundles: numpy, Pillow, tokenizers, jinja2 and a backend; never torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvlm_runtime.answering import AnswerPiece, Generation
    from lvlm_runtime.asking import BatchQuestion
    from lvlm_runtime.conversation import Conversation
    from lvlm_runtime.errors import LvlmError, UsageError
    from lvlm_runtime.prompt.sampling import SamplingOptions
    from lvlm_runtime.session import Session
    from lvlm_runtime.streaming import StreamedAnswer

__all__ = [
    "AnswerPiece",
    "BatchQuestion",
    "Conversation",
    "Generation",
    "LvlmError",
    "SamplingOptions",
    "Session",
    "StreamedAnswer",
    "UsageError",
]
__version__ = "0.1.0"

_HOMES = {
    "AnswerPiece": "answering",
    "BatchQuestion": "asking",
    "Conversation": "conversation",
    "Generation": "answering",
    "LvlmError": "errors",
    "SamplingOptions": "prompt.sampling",
    "Session": "session",
    "StreamedAnswer": "streaming",
    "UsageError": "errors",
}


def __getattr__(name: str) -> Any:
    """Import on first use: ``--help`` and bundle checks need no backend."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"lvlm_runtime.{_HOMES[name]}"), name)
