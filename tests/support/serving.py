"""A server on a real port in a thread, and what asks it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
from PIL import Image

from lvlm_export.demo import PICTURES
from lvlm_runtime.serve.app import create_app
from lvlm_runtime.serve.desk import Desk
from lvlm_runtime.serve.limits import ServingLimits
from lvlm_runtime.serve.opening import Places, open_desk
from lvlm_runtime.serve.server import bind
from lvlm_runtime.serve.web import uvicorn

PICTURE = PICTURES / "scene_0.png"
QUESTION = "What color is the circle?"
LISTING = "What is there from left to right?"
# One thread: a tiny graph is over before a second one has woken up.
ONE_THREAD = Places(memory_bytes=64 << 20, backend="onnxruntime", device="cpu", threads=1)


@dataclass
class Running:
    """A server that answers.

    Attributes:
        address: Where.
        desk: Its inside.
        log: What it has said.
    """

    address: str
    desk: Desk
    log: io.StringIO

    @property
    def model(self) -> str:
        """Of its first bundle."""
        return next(iter(self.desk.catalogue.bundles))

    def post(self, body: Any, **headers: str) -> httpx.Response:
        """Send a body, as it is where it is bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(
            f"{self.address}/v1/chat/completions",
            content=content,
            headers={"Content-Type": "application/json", **headers},
            timeout=60,
        )

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Ask for an address."""
        return httpx.get(f"{self.address}{path}", headers=headers, timeout=60)

    def asked(self, question: str = QUESTION, *pictures: Path, **fields: Any) -> dict[str, Any]:
        """A body with a question about pictures."""
        parts = [*map(shown, pictures), {"type": "text", "text": question}]
        messages = [{"role": "user", "content": parts}]
        return {"model": self.model, "messages": messages, **fields}

    def requests(self) -> list[dict[str, Any]]:
        """Its log's lines about requests."""
        lines = map(json.loads, self.log.getvalue().splitlines())
        return [line for line in lines if line["event"] == "request"]


def shown(picture: Path) -> dict[str, Any]:
    """A picture as a part of a message."""
    kind = "png" if picture.suffix == ".png" else "jpeg"
    return {"type": "image_url", "image_url": {"url": data_url(picture.read_bytes(), kind)}}


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def png(width: int, height: int) -> bytes:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (90, 20, 20)).save(file, "PNG")
    return file.getvalue()


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    """Look again and again."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.005)


@contextmanager
def running(
    *bundles: Path,
    places: Places = ONE_THREAD,
    limits: ServingLimits | None = None,
    api_key: str | None = None,
    names: tuple[str, ...] | None = None,
    warm: bool = True,
) -> Iterator[Running]:
    """A server in a thread of this process, on a port that was free."""
    desk = open_desk(bundles, places, limits or ServingLimits(), "json", api_key)
    desk.log.stream = log = io.StringIO()
    listening = bind("127.0.0.1", 0)
    config = uvicorn.Config(
        create_app(desk, names), http="h11", ws="none", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        if warm:
            desk.start()
            wait_for(lambda: desk.ready)
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", desk, log)
    finally:
        server.should_exit = True
        thread.join()
        desk.close()
