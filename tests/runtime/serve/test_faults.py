"""What goes wrong inside, or takes too much: the client is told what is its own business."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2 as httpx
import openai
import pytest

from lvlm_runtime import LvlmError
from lvlm_runtime.serve import gate
from lvlm_runtime.serve.line import FairLine
from lvlm_runtime.serve.served import ServedBundle
from lvlm_runtime.serve.warming import size_of
from serving import LISTING, PICTURE, QUESTION, Running, wait_for


def test_caches_that_are_too_large_are_refused_before_they_are_made(
    server: Running, bundle: ServedBundle
) -> None:
    size = size_of(bundle.session, QUESTION, bundle.session.bundle.manifest.layouts[0])
    needed = replace(size, answer_tokens=256).kv_bytes(bundle.session.bundle, 1.0)
    limits = server.desk.limits
    server.desk.limits = replace(limits, kv_bytes=needed - 1)
    try:
        refused = server.post(server.asked(QUESTION, PICTURE, ratio=1.0))
        # Fewer visual tokens take less.
        answered = server.post(server.asked(QUESTION, PICTURE, ratio=0.33))
    finally:
        server.desk.limits = limits
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert f"the caches of this request take {needed} bytes, and this server gives" in message
    assert answered.status_code == 200


def test_a_bundle_that_cannot_be_warmed_up_is_not_ready(
    server: Running, bundle: ServedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise LvlmError("the graph does not load")

    monkeypatch.setattr(bundle.session, "warmup", broken)
    cold = ServedBundle("cold", [bundle.session], FairLine(1), server.desk.metrics)
    monkeypatch.setitem(server.desk.catalogue.bundles, "cold", cold)
    cold.start()
    wait_for(lambda: cold.failed)
    cold.line.close()
    ready = server.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (
        503,
        "warming up failed; the log says why",
    )
    assert "the graph does not load" in server.log.getvalue()


def test_what_fails_inside_is_no_fault_of_the_client_and_not_told(
    server: Running, bundle: ServedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_keywords: Any) -> None:
        raise RuntimeError("/secret/place and the words of a prompt")

    with monkeypatch.context() as patch:
        patch.setattr(bundle.session.chain, "prefill", broken)
        patch.setattr(bundle.session.chain, "fill", broken)
        response = server.post(server.asked(QUESTION, PICTURE))
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "secret" not in server.log.getvalue()
    assert '"error": "RuntimeError"' in server.log.getvalue()
    assert server.post(server.asked(QUESTION, PICTURE)).status_code == 200


def test_a_stream_that_fails_says_so_in_an_event(
    server: Running, bundle: ServedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend, calls = bundle.session.chain.extend, []

    def second_fails(*args: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("gone")
        return extend(*args, **keywords)

    monkeypatch.setattr(bundle.session.chain, "extend", second_fails)
    before = len(server.requests())
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    stream = client.chat.completions.create(
        stream=True, **server.asked(LISTING, PICTURE, max_tokens=9)
    )
    with pytest.raises(openai.APIError, match="this server failed to answer"):
        list(stream)
    # The line about it comes behind the event.
    wait_for(lambda: len(server.requests()) > before)
    assert server.requests()[-1]["status"] == 500


def test_bodies_of_all_requests_are_bounded_together(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "BODIES", 0)
    response = server.post(server.asked())
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert "as much memory as this server gives to bodies" in response.json()["error"]["message"]


def test_a_body_that_does_not_come_is_not_waited_for(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "BODY_S", 0.05)

    def slowly() -> Iterator[bytes]:
        yield b"{"
        threading.Event().wait(0.3)
        yield b"}"

    response = httpx.post(
        f"{server.address}/v1/chat/completions",
        content=slowly(),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 408
