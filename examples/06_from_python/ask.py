"""What a program does with a session: ``python ask.py BUNDLE PICTURE``. `make lint` checks its types."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_runtime import AnswerPiece, BatchQuestion, Generation, LvlmError, Session

QUESTION = "What color is the circle?"


def stream(session: Session, picture: Path) -> Generation:
    """Token by token; the loop may be left at any time."""
    answer = session.stream(QUESTION, picture, 0.5, stop=["."], max_new_tokens=32)
    pieces: list[AnswerPiece] = []
    for piece in answer:
        pieces.append(piece)
        if len(pieces) == 20:
            answer.stop()
    print(f"streamed: {answer.generation.text}, first token after {pieces[0].time_ms:.0f} ms")
    return answer.generation


def chat(session: Session, picture: Path) -> str:
    """A chat as OpenAI's clients write it."""
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    messages: list[dict[str, Any]] = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": QUESTION},
            ],
        }
    ]
    return session.generate(messages=messages, ratio=1.0).text


def batch(session: Session, picture: Path) -> list[str]:
    """Several questions, the same picture at every ratio."""
    questions: list[BatchQuestion] = [
        {"prompt": QUESTION, "ratio": ratio} for ratio in session.ratios
    ]
    return [answer.text for answer in session.generate_batch(questions, images=picture)]


def never(token: int, ids: Sequence[int], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """A processor of scores: what is banned is not said."""
    scores[token] = -np.inf
    return scores


async def awaited(session: Session, picture: Path) -> str:
    """In an event loop, which goes on meanwhile."""
    first = await session.generate_async(QUESTION, picture)
    token = first.token_ids[0]
    pieces = session.stream(
        QUESTION, picture, logits_processor=lambda ids, scores: never(token, ids, scores)
    )
    return f"{first.text}, not {''.join([piece.text async for piece in pieces]).strip()}"


def main(bundle: str, picture: str) -> None:
    """Everything once."""
    with Session.open(bundle) as session:
        print(session)
        session.warmup([0.5])
        generation = stream(session, Path(picture))
        slowest = max(generation.timings, key=lambda each: each.total_ms)
        print(f"slowest: {slowest.name} ({slowest.phase}), {slowest.total_ms:.1f} ms")
        print(f"messages: {chat(session, Path(picture))}")
        print(f"batch: {', '.join(batch(session, Path(picture)))}")
        print(f"banned: {asyncio.run(awaited(session, Path(picture)))}")
        try:
            session.generate(QUESTION, "https://example.org/cat.jpg")
        except LvlmError as error:
            print(f"refused: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
