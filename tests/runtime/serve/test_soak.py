"""A thousand requests of sixteen clients, some of which leave or send what they should not."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from lvlm_export.demo import PICTURES
from lvlm_runtime import Session
from lvlm_runtime.serve.limits import ServingLimits
from serving import LISTING, ONE_THREAD, QUESTION, Running, running, wait_for

REQUESTS, CLIENTS = 1000, 16
SHOWN = sorted(PICTURES.glob("scene_*.png"))[:3]
RATIOS = (0.33, 0.5, 1.0)
BODY_BYTES = 300_000
# Growth of the process between the first third and the end that is no leak: allocators keep some.
MORE_BYTES, MORE_FILES = 24 << 20, 4


class Client:
    """One of the sixteen: asks what its random numbers say, and counts what was not right."""

    def __init__(self, number: int, server: Running, right: dict[Any, str]) -> None:
        self.server, self.right = server, right
        self.random = random.Random(number)
        self.wrong: list[str] = []
        self.statuses: dict[int, int] = {}
        self.http = httpx.Client(base_url=server.address, timeout=120)

    def ask(self) -> None:
        kind = self.random.random()
        if kind < 0.55:
            self.whole()
        elif kind < 0.75:
            self.streamed(leave=False)
        elif kind < 0.9:
            self.streamed(leave=True)
        else:
            self.malformed()

    def question(self) -> tuple[Any, dict[str, Any]]:
        asked = self.random.choice((QUESTION, LISTING))
        picture, ratio = self.random.choice(SHOWN), self.random.choice(RATIOS)
        body = self.server.asked(asked, picture, max_tokens=24)
        if self.random.random() < 0.5:
            body["model"] = f"{self.server.model}@{ratio:g}"
        else:
            body["ratio"] = ratio
        return (asked, picture, ratio), body

    def count(self, status: int) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def whole(self) -> None:
        key, body = self.question()
        response = self.http.post("/v1/chat/completions", json=body)
        self.count(response.status_code)
        if response.status_code == 200:
            text = response.json()["choices"][0]["message"]["content"]
            if text != self.right[key]:
                self.wrong.append(f"{key}: {text!r}")

    def streamed(self, leave: bool) -> None:
        key, body = self.question()
        texts = []
        pieces = self.random.randrange(1, 4)
        with self.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as got:
            self.count(got.status_code)
            if got.status_code != 200:
                return
            for line in got.iter_lines():
                if line.startswith("data: {"):
                    delta = json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
                    texts.append(delta.get("content", ""))
                    if leave and len(texts) > pieces:
                        return
        text = "".join(texts)
        if text != self.right[key]:
            self.wrong.append(f"{key}, streamed: {text!r}")

    def malformed(self) -> None:
        content = self.random.choice(
            (
                b"",
                b"{",
                self.random.randbytes(200),
                b"[" * 5000,
                b'{"model": 1}',
                b"x" * (BODY_BYTES + 1),
                json.dumps(self.server.asked(temperature=-1)).encode(),
            )
        )
        headers = {"Content-Type": "application/json"}
        response = self.http.post("/v1/chat/completions", content=content, headers=headers)
        self.count(response.status_code)
        if not 400 <= response.status_code < 500:
            self.wrong.append(f"{content[:40]!r}: {response.status_code}")


def memory() -> tuple[int, int]:
    """Bytes of this process, and its open files."""
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(resident.split()[1]) * 1024, len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.slow
def test_a_thousand_requests(demo_bundle: Path) -> None:
    alone = Session.open(demo_bundle, backend="onnxruntime", device="cpu", threads=1)
    right = {
        (asked, picture, ratio): alone.generate(asked, picture, ratio, max_new_tokens=24).text
        for asked in (QUESTION, LISTING)
        for picture in SHOWN
        for ratio in RATIOS
    }
    limits = ServingLimits(waiting=12, body_bytes=BODY_BYTES)
    with running(demo_bundle, places=ONE_THREAD, limits=limits) as server:
        clients = [Client(number, server, right) for number in range(CLIENTS)]

        def ask(client: Client, count: int) -> None:
            for _ in range(count):
                client.ask()

        def round_of(count: int) -> None:
            threads = [
                threading.Thread(target=ask, args=(client, count // CLIENTS)) for client in clients
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wait_for(lambda: not server.desk.open_requests)

        round_of(REQUESTS // 3)
        before = memory()
        round_of(REQUESTS - REQUESTS // 3)
        after = memory()
        logged = server.log.getvalue()
    assert [each for client in clients for each in client.wrong] == []
    statuses: dict[int, int] = {}
    for client in clients:
        for status, count in client.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    # How many find the queue full depends on the machine.
    assert statuses[200] > REQUESTS / 4
    assert max(statuses) < 500, statuses
    assert '"failed"' not in logged
    assert after[0] - before[0] < MORE_BYTES, (before, after)
    assert after[1] - before[1] <= MORE_FILES, (before, after)
