"""The libraries of the extra ``serve``, in one place; the runtime without them imports nothing here."""

from __future__ import annotations

from lvlm_runtime.errors import LvlmError

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
    from pydantic import Field
    from starlette.exceptions import HTTPException
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    # A device that answers no network needs none of it.
    raise LvlmError(
        f"the server's packages are not installed ({error}); pip install 'lvlm-export[serve]'"
    ) from None

__all__ = [
    "CONTENT_TYPE_LATEST",
    "ASGIApp",
    "CollectorRegistry",
    "Counter",
    "FastAPI",
    "Field",
    "Gauge",
    "HTMLResponse",
    "HTTPException",
    "Histogram",
    "JSONResponse",
    "Message",
    "Receive",
    "Request",
    "RequestValidationError",
    "Response",
    "Scope",
    "Send",
    "StreamingResponse",
    "generate_latest",
    "uvicorn",
]
