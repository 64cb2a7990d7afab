"""The requests that a session answers before it is ready: every ratio, with a picture of every layout and without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

from lvlm_runtime.image import synthetic
from lvlm_runtime.image.anyres import TileLayout
from lvlm_runtime.request import layouts_for
from lvlm_runtime.serve.job import BudgetWish, ServedRequest
from lvlm_runtime.serve.size import AskedSize
from lvlm_runtime.session import Session

QUESTION = "What is in the picture?"
TOKENS = 2


def first_requests(session: Session) -> Iterator[ServedRequest]:
    """Whose times say what each ratio takes; nobody is told of their answers."""
    for ratio in session.ratios:
        for layout in (*layouts_for(session.bundle.manifest.layouts, 1), None):
            content: list[dict[str, Any]] = [{"type": "text", "text": QUESTION}]
            if layout is not None:
                content.insert(0, {"type": "image_url", "image_url": _picture(layout)})
            yield ServedRequest(
                "",
                {
                    "messages": [{"role": "user", "content": content}],
                    "max_new_tokens": TOKENS,
                    "ignore_stop": True,
                },
                BudgetWish(ratio),
                size_of(session, QUESTION, layout),
                lambda _: None,
            )


def size_of(session: Session, question: str, layout: TileLayout | None) -> AskedSize:
    """The size of one question behind a picture of a layout, or behind none."""
    images = 0 if layout is None else 1
    ids = session.encoder.encode(question, images)
    return AskedSize(images, len(ids) - images, TOKENS, None if layout is None else layout.name)


def _picture(layout: TileLayout) -> Image.Image:
    """A picture that takes a layout: of the size that it is made for, where it is for one."""
    made = Image.fromarray(synthetic.picture())
    size = layout.image_width, layout.image_height
    return made if 0 in size else made.resize(size)
