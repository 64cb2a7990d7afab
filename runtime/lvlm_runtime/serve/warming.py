"""The requests that a session answers before it is ready: every ratio, with a picture and without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lvlm_runtime.image import synthetic
from lvlm_runtime.serve.job import BudgetWish, ServedRequest
from lvlm_runtime.serve.size import AskedSize
from lvlm_runtime.session import Session

QUESTION = "What is in the picture?"
TOKENS = 2


def first_requests(session: Session) -> Iterator[ServedRequest]:
    """Whose times say what each ratio takes; nobody is told of their answers."""
    for ratio in session.ratios:
        for images in (1, 0):
            content: list[dict[str, Any]] = [{"type": "text", "text": QUESTION}]
            if images:
                content.insert(0, {"type": "image_url", "image_url": synthetic.picture()})
            yield ServedRequest(
                "",
                {
                    "messages": [{"role": "user", "content": content}],
                    "max_new_tokens": TOKENS,
                    "ignore_stop": True,
                },
                BudgetWish(ratio),
                size_of(session, QUESTION, images),
                lambda _: None,
            )


def size_of(session: Session, question: str, images: int) -> AskedSize:
    """The size of one question behind its pictures."""
    ids = session.encoder.encode(question, images)
    return AskedSize(images, len(ids) - images, TOKENS)
