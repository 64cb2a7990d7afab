"""What stands in front of every route: who may ask, under which name, and how long a body may be."""

from __future__ import annotations

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
OPEN_TO_ALL = ("/health", "/ready", "/")
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Gate:
    """An ASGI application in front of another.

    Args:
        app: What is behind it.
        api_key: What ``Authorization: Bearer …`` must have; None for nothing.
        body_bytes: Longest body.
        names: Host names that a request may be for; None for any. A server that is bound to this
            machine alone is asked for by its names: a page of another site whose name leads here
            (DNS rebinding) is not.
    """

    def __init__(
        self, app: ASGIApp, api_key: str | None, body_bytes: int, names: Iterable[str] | None
    ) -> None:
        self._app = app
        self._key = None if api_key is None else api_key.encode()
        self._body_bytes = body_bytes
        self._names = None if names is None else frozenset(names)

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
        await self._app(scope, self._bounded(receive), send)

    def _check(self, scope: Scope) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._names is not None and _name(host) not in self._names:
            raise RefusedError(
                "this server answers under the names of its own machine alone; ask localhost, or start it"
                " with --host",
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
        if length.isdigit() and int(length[:19]) > self._body_bytes:
            raise self._too_long()

    def _too_long(self) -> RefusedError:
        return RefusedError(
            f"the body is longer than the {self._body_bytes} bytes that this server reads; send smaller"
            " pictures",
            413,
            "body_too_large",
        )

    def _bounded(self, receive: Receive) -> Receive:
        """As ``receive``, for bodies that do not say how long they are, too."""
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._body_bytes:
                # Starlette's own error passes FastAPI's reading of a body as it is.
                raise HTTPException(413, str(self._too_long()))
            return message

        return counted


def _name(host: str) -> str:
    """A Host header without its port.

    Example: ``localhost:8000`` is ``localhost``, ``[::1]:8000`` is ``[::1]``.
    """
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
