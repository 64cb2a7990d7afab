"""Turns of a conversation against fresh requests with the whole chat."""

from __future__ import annotations

from typing import Any

import numpy as np

from lvlm_runtime import Session
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.conversation import Conversation


def first_logits(recorder: Recorder) -> list[np.ndarray]:
    """Filled with the logits of every call; the first are those of the prompt."""
    seen: list[np.ndarray] = []

    def note(name: str, value: Any) -> None:
        if name == "lm_head":
            seen.append(value.numpy().copy())

    recorder.on_stage = note
    return seen


def check_turns(
    session: Session, chat: Conversation, ratio: float, turns: Any, tokens: int = 6
) -> list[int]:
    """Every turn against a fresh request with the whole chat; returns what was reused."""
    reused = []
    for prompt, images in turns:
        recorder, fresh = Recorder(), Recorder()
        ours, theirs = first_logits(recorder), first_logits(fresh)
        answer = chat.ask(prompt, images, ratio, max_new_tokens=tokens, recorder=recorder)
        whole = session.generate_ids(
            session.encoder.encode_messages(chat.messages[:-1]),
            [picture.content for picture in chat.pictures],
            ratio,
            max_new_tokens=tokens,
            recorder=fresh,
            query_ids=session.encoder.question(prompt),
        )
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-3, atol=1e-3)
        assert answer.token_ids == whole.token_ids
        assert answer.prompt_tokens == whole.prompt_tokens
        assert answer.visual_tokens == whole.visual_tokens
        reused.append(answer.reused_tokens)
    return reused
