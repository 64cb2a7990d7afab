"""What stands in front of every route: who may ask, under which name, and how long a body may be."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable

from lvlm_runtime.serve.refusal import RefusedError
from lvlm_runtime.serve.web import (
    ASGIApp,
    HTTPException,
    JSONResponse,
    Message,
    Receive,
    Scope,
    Send,
)

# What monitors ask without a key, and the page, which asks its reader for one.
OPEN_TO_ALL = ("/health", "/ready", "/", "/page.css", "/page.js")
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
# Bodies of this many requests may be in memory at once, each as long as one may be.
BODIES = 8
# Seconds for a body to come.
BODY_S = 60.0


class Gate:
    """An ASGI application in front of another.

    Args:
        app: What is behind it.
        api_key: What ``Authorization: Bearer …`` must have; None for nothing.
        body_bytes: Longest body; those of ``BODIES`` such requests may be here at once.
        names: Host names that a request may be for; None for any. A server that is bound to this
            machine alone is asked for by its names: a page of another site whose name leads here
            (DNS rebinding) is not.

    Attributes:
        held_bytes: Bodies of the requests that are here.
    """

    def __init__(
        self, app: ASGIApp, api_key: str | None, body_bytes: int, names: Iterable[str] | None
    ) -> None:
        self._app = app
        self._key = None if api_key is None else api_key.encode()
        self.body_bytes = body_bytes
        self._names = None if names is None else frozenset(each.lower() for each in names)
        self.held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except RefusedError as error:
            response = JSONResponse(error.body(), error.status, error.headers())
            await response(scope, receive, send)
            return
        body = BoundedBody(self, receive)
        try:
            await self._app(scope, body.receive, send)
        finally:
            self.held_bytes -= body.read

    def _check(self, scope: Scope) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._names is not None and _name(host) not in self._names:
            raise RefusedError(
                "this server answers under the names of its own machine alone; ask localhost, or start it"
                " with --allow-host and this name",
                421,
                "wrong_host",
            )
        if self._key is not None and scope["path"] not in OPEN_TO_ALL:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            right = hmac.compare_digest(given.strip(), self._key)
            if kind.lower() != b"bearer" or not right:
                raise RefusedError(
                    "no API key, or a wrong one; send Authorization: Bearer and the key of this server",
                    401,
                    "invalid_api_key",
                )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:19]) > self.body_bytes:
            raise self.too_long()

    def too_long(self) -> RefusedError:
        """What a body that is longer than allowed is answered."""
        return RefusedError(
            f"the body is longer than the {self.body_bytes} bytes that this server reads; send smaller"
            " pictures",
            413,
            "body_too_large",
        )


class BoundedBody:
    """The body of one request: as long as allowed, in time, and beside the others in memory.

    Starlette's own error passes FastAPI's reading of a body as it is.

    Args:
        gate: Counts what all requests hold.
        receive: Gives the messages of this one.

    Attributes:
        read: Bytes that have come.
    """

    def __init__(self, gate: Gate, receive: Receive) -> None:
        self._gate = gate
        self._receive = receive
        self._until = asyncio.get_running_loop().time() + BODY_S
        self._whole = False
        self.read = 0

    async def receive(self) -> Message:
        """The next message; behind the body, who asked leaving."""
        if self._whole:
            return await self._receive()
        left = self._until - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, left))
        except asyncio.TimeoutError:
            raise HTTPException(
                408, f"the body has not come within {BODY_S:g} s; send it at once"
            ) from None
        length = len(message.get("body", b""))
        self.read += length
        self._gate.held_bytes += length
        if self.read > self._gate.body_bytes:
            raise HTTPException(413, str(self._gate.too_long()))
        if self._gate.held_bytes > BODIES * self._gate.body_bytes:
            raise HTTPException(
                503,
                "the requests that are here hold as much memory as this server gives to bodies; ask"
                " again later",
                {"Retry-After": "1"},
            )
        self._whole = not message.get("more_body", False)
        return message


def _name(host: str) -> str:
    """A Host header without its port.

    Example: ``localhost:8000`` is ``localhost``, ``[::1]:8000`` is ``[::1]``.
    """
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
