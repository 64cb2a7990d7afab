"""Who may ask, under which name, how much, and what happens when the server ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from command_line import error_line, typed
from lvlm_runtime.serve.gate import LOCAL_NAMES
from lvlm_runtime.serve.limits import ServingLimits
from serving import QUESTION, Running, running, shown

KEY = "wax-seal-7"


@pytest.fixture(scope="module")
def guarded(demo_bundle: Path) -> Iterator[Running]:
    """A server with a key that is never warm: what is tested here stands in front of the sessions."""
    limits = ServingLimits(body_bytes=20_000, pictures=1)
    with running(
        demo_bundle, limits=limits, api_key=KEY, names=(*LOCAL_NAMES, "Proxy.example"), warm=False
    ) as server:
        yield server


@pytest.mark.parametrize("sent", [None, "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer \xff"])
def test_without_the_key_nobody_is_answered(sent: str | None, guarded: Running) -> None:
    headers = {} if sent is None else {"Authorization": sent.encode("latin-1")}
    for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/chat/completions"):
        response = httpx.get(f"{guarded.address}{path}", headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"


def test_with_the_key_they_are(guarded: Running) -> None:
    client = openai.OpenAI(base_url=f"{guarded.address}/v1", api_key=KEY)
    assert next(each.id for each in client.models.list()) == guarded.model


def test_monitors_need_no_key_and_see_that_it_is_not_warm(guarded: Running) -> None:
    assert guarded.get("/health").json() == {"status": "ok"}
    ready = guarded.get("/ready")
    assert (ready.status_code, ready.json()) == (503, {"status": "warming up"})


def test_another_host_name_is_refused(guarded: Running) -> None:
    """As after DNS rebinding: a page of another site whose name leads to this machine."""
    response = guarded.get("/health", Host="evil.example:8000")
    assert response.status_code == 421
    assert "--allow-host" in response.json()["error"]["message"]
    assert guarded.get("/health", Host="proxy.example").status_code == 200
    assert guarded.get("/health", Host="localhost:1").status_code == 200
    assert guarded.get("/health", Host="[::1]:1").status_code == 200


@pytest.mark.parametrize("says_how_long", [True, False])
def test_a_body_that_is_too_long_is_refused(says_how_long: bool, guarded: Running) -> None:
    content = b'{"model": "' + b"x" * 20_000 + b'"}'
    response = httpx.post(
        f"{guarded.address}/v1/chat/completions",
        content=content if says_how_long else iter([content[:9000], content[9000:]]),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
    )
    assert response.status_code == 413
    assert "longer than the 20000 bytes" in response.json()["error"]["message"]


def test_too_many_pictures_are_refused(guarded: Running, tmp_path: Path) -> None:
    from serving import png

    (tmp_path / "one.png").write_bytes(png(4, 4))
    body = guarded.asked(QUESTION, *[tmp_path / "one.png"] * 2)
    response = guarded.post(body, Authorization=f"Bearer {KEY}")
    assert response.status_code == 400
    assert "2 pictures are more than this server takes" in response.json()["error"]["message"]
    assert shown(tmp_path / "one.png")["type"] == "image_url"


def test_a_key_file_without_a_key_is_refused(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" \n")
    result = typed("serve", demo_bundle, "--api-key-file", tmp_path / "key")
    assert "has no key, or several words" in error_line(result, 2)
    result = typed("serve", demo_bundle, "--api-key-file", tmp_path / "none")
    assert "no key can be read from" in error_line(result, 2)


def test_two_bundles_of_one_name_and_a_taken_port_are_one_line(
    demo_bundle: Path, guarded: Running
) -> None:
    port = guarded.address.rpartition(":")[2]
    line = error_line(typed("serve", demo_bundle, "--port", port), 1)
    assert f"cannot listen on 127.0.0.1, port {port}: address already in use" in line
    line = error_line(typed("serve", demo_bundle, demo_bundle, "--port", "0"), 2)
    assert "two bundles are called" in line


def test_sigterm_lets_answers_end(demo_bundle: Path, tmp_path: Path) -> None:
    """The command in a process of its own: it says where it listens, and an answer under way comes."""
    words = ["serve", str(demo_bundle), "--port", "0", "--device", "cpu", "--threads", "1"]
    command = [sys.executable, "-m", "lvlm_export", *words, "--log", "json"]
    environment = {**os.environ, "LVLM_EXPORT_API_KEY": KEY}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        address = re.match(r"(http://127.0.0.1:\d+) serves ", process.stderr.readline())
        assert address is not None
        body = {"model": demo_bundle.name, "messages": [{"role": "user", "content": "Hello?"}]}
        answers: list[httpx.Response] = []

        def ask() -> None:
            headers = {"Authorization": f"Bearer {KEY}"}
            url = f"{address[1]}/v1/chat/completions"
            answers.append(httpx.post(url, json=body, headers=headers, timeout=60))

        # It warms up, so this one waits in the line.
        thread = threading.Thread(target=ask)
        thread.start()
        while not answers and thread.is_alive() and _waiting(address[1]) == 0:
            pass
        process.send_signal(signal.SIGTERM)
        thread.join()
        said = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert process.returncode == 0
    assert answers[0].status_code == 200
    assert "draining" in {line["event"] for line in said}


def _waiting(address: str) -> float:
    text = httpx.get(f"{address}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    lines = [
        line for line in text.splitlines() if re.match(r"lvlm_(waiting|running)_requests", line)
    ]
    return sum(float(line.split()[-1]) for line in lines)
