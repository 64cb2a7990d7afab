"""The routes of the server, and its errors in OpenAI's form."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvlm_runtime import __version__
from lvlm_runtime.answering import Generation
from lvlm_runtime.serve.desk import Desk, Exchange, LeftError
from lvlm_runtime.serve.forms import ChatBody
from lvlm_runtime.serve.gate import Gate
from lvlm_runtime.serve.job import Begun, Finished, Said
from lvlm_runtime.serve.reading import read_request
from lvlm_runtime.serve.refusal import RefusedError
from lvlm_runtime.serve.replies import DONE, ReplyForm, TrimmedText
from lvlm_runtime.serve.served import failure
from lvlm_runtime.serve.web import (
    CONTENT_TYPE_LATEST,
    ASGIApp,
    FastAPI,
    HTTPException,
    JSONResponse,
    Request,
    RequestValidationError,
    Response,
    StreamingResponse,
)

# Of HTTP's reference implementation of proxies: who asked closed the connection (nginx).
LEFT = 499
SSE = "text/event-stream"
UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

# Address -> file and its type.
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
# Nothing of elsewhere, and in nobody's frame.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src"
    " 'self'; img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(desk: Desk, names: tuple[str, ...] | None = None) -> ASGIApp:
    """An ASGI application of a desk, which is started and closed by who calls.

    Args:
        desk: What answers.
        names: Host names that requests may be for; None for any.
    """
    routes = Routes(desk)
    app = FastAPI(title="lvlm-export", version=__version__, docs_url=None, redoc_url=None)
    app.add_api_route("/v1/chat/completions", routes.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", routes.models, response_model=None)
    app.add_api_route("/v1/models/{model:path}", routes.model, response_model=None)
    app.add_api_route("/health", routes.health, response_model=None)
    app.add_api_route("/ready", routes.ready, response_model=None)
    app.add_api_route("/metrics", routes.metrics, response_model=None)
    for address in PAGE:
        app.add_api_route(address, routes.page, response_model=None, include_in_schema=False)
    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(RequestValidationError, misformed)
    app.add_exception_handler(HTTPException, not_routed)
    return Gate(app, desk.api_key, desk.limits.body_bytes, names)


@dataclass
class Routes:
    """What each address answers."""

    desk: Desk

    def health(self) -> Response:
        """The process lives."""
        return JSONResponse({"status": "ok"})

    def ready(self) -> Response:
        """All budgets are warm and requests are taken."""
        return JSONResponse({"status": self.desk.state}, 200 if self.desk.ready else 503)

    def page(self, request: Request) -> Response:
        """A page to try a bundle, and what belongs to it."""
        name, kind = PAGE[request.url.path]
        content = Path(__file__).with_name("page") / name
        return Response(content.read_bytes(), media_type=kind, headers=PAGE_HEADERS)

    def metrics(self) -> Response:
        """For Prometheus."""
        return Response(self.desk.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    def models(self) -> Response:
        """All ids that a request may name."""
        return JSONResponse(self.desk.catalogue.entries())

    def model(self, model: str) -> Response:
        """One of them."""
        return JSONResponse(self.desk.catalogue.entry(model))

    async def chat(self, request: Request, body: ChatBody) -> Response:
        """An answer, whole or as a stream."""
        asked = AskedOnce(self.desk, body)
        try:
            return await asked.answer(request)
        except LeftError:
            asked.note(LEFT)
            return Response(status_code=LEFT)
        except RefusedError as error:
            asked.note(error.status, error.code)
            raise
        except Exception as error:  # a bug of ours: who asked is told of no more than that
            self.desk.metrics.failed(asked.model, error)
            asked.note(500)
            raise failure() from error


@dataclass
class AskedOnce:
    """One request to ``/v1/chat/completions`` and the line about it."""

    desk: Desk
    body: ChatBody
    came: float = field(default_factory=time.perf_counter)

    @property
    def model(self) -> str:
        """The id that it names, where there is such a one: metrics and log have no words of others."""
        return self.body.model if self.body.model in self.desk.catalogue else "unknown"

    async def answer(self, request: Request) -> Response:
        """Read, wait, answer; errors as of ``Exchange.events``."""
        desk, body = self.desk, self.body
        desk.check_open()
        # Pictures are looked into, so not in the event loop.
        read = await asyncio.to_thread(read_request, body, desk.catalogue, desk.limits)
        reply = ReplyForm(body.model, read.bundle.session.encoder)
        address = "" if request.client is None else request.client.host

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        exchange = Exchange.begin(desk, read, f"{address} {body.user or ''}", gone)
        streams = False
        try:
            if not body.stream:
                begun, said, finished = await exchange.whole()
                self.note(200, None, finished.generation, begun)
                chances = [each.chance for each in said if each.chance is not None]
                return JSONResponse(reply.whole(finished, begun, chances))
            events = exchange.events()
            # Whether it is answered at all is the response's status.
            first = await anext(events)
            assert isinstance(first, Begun), "an answer begins with its ratio"
            streams = True
        finally:
            if not streams:
                exchange.end()
        chunks = self.chunks(exchange, reply, first, events)
        return StreamingResponse(chunks, media_type=SSE, headers=UNBUFFERED)

    async def chunks(
        self,
        exchange: Exchange,
        reply: ReplyForm,
        begun: Begun,
        events: AsyncIterator[Begun | Said | Finished],
    ) -> AsyncIterator[str]:
        """A stream's events; an error behind the first one is an event, too."""
        text = TrimmedText()
        status, code, generation = LEFT, None, None
        try:
            yield event(reply.first())
            async for each in events:
                if isinstance(each, Said):
                    shown = text.push(each.piece.text)
                    chances = [] if each.chance is None else [each.chance]
                    if shown or chances:
                        yield event(reply.piece(shown, chances))
                elif isinstance(each, Finished):
                    generation, status = each.generation, 200
                    yield event(reply.last(each, begun))
                    options = self.body.stream_options
                    if options is not None and options.include_usage:
                        yield event(reply.counted(generation))
                    yield f"data: {DONE}\n\n"
        except RefusedError as error:
            status, code = error.status, error.code
            yield event(error.body())
        except LeftError:
            pass
        finally:
            exchange.end()
            self.note(status, code, generation, begun)

    def note(
        self,
        status: int,
        code: str | None = None,
        generation: Generation | None = None,
        begun: Begun | None = None,
    ) -> None:
        """Count the request and log a line about it."""
        model = self.model
        self.desk.metrics.requests.labels(model, str(status)).inc()
        numbers: dict[str, Any] = {}
        if generation is not None:
            numbers = {
                "prompt_tokens": generation.prompt_tokens,
                "completion_tokens": len(generation.token_ids),
                "cached_tokens": generation.reused_tokens,
                "ttft_ms": round(generation.time_to_first_token_ms, 1),
            }
        if begun is not None:
            numbers |= {"ratio": begun.ratio, "waited_ms": round(begun.waited_ms, 1)}
        total = round((time.perf_counter() - self.came) * 1e3, 1)
        self.desk.log.say(
            "request", status=status, code=code, model=model, total_ms=total, **numbers
        )


def event(content: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def refused(_request: Request, error: Exception) -> Response:
    """OpenAI's form of a refusal."""
    assert isinstance(error, RefusedError)
    return JSONResponse(error.body(), error.status, error.headers())


def misformed(request: Request, error: Exception) -> Response:
    """A body that is not what the API takes: the first thing that is wrong, and where."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    # "body", and in a union the names of its members, are no fields of the request.
    places = [str(each) for each in first["loc"][1:] if isinstance(each, int) or each.islower()]
    words = str(first["msg"])
    if not places and ChatBody.__name__ in words:
        words = "expected a JSON object; send it with the header Content-Type: application/json"
    message = f"{'.'.join(places) or 'the body'}: {words[:1].lower()}{words[1:]}"
    refusal = RefusedError(message, 400, "invalid_value", ".".join(places) or None)
    return refused(request, refusal)


def not_routed(request: Request, error: Exception) -> Response:
    """No such address, or not with this method; and a body that is too long."""
    assert isinstance(error, HTTPException)
    refusal = RefusedError(str(error.detail), error.status_code)
    response = refused(request, refusal)
    response.headers.update(error.headers or {})
    return response
