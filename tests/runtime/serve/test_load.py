"""A busy server: who waits, who is refused, who leaves, and what is said of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from lvlm_runtime.serve.desk import Exchange
from lvlm_runtime.serve.forms import ChatBody, ChatMessage
from lvlm_runtime.serve.job import Begun, BudgetWish, Event, Finished, Said, ServedRequest
from lvlm_runtime.serve.limits import ServingLimits
from lvlm_runtime.serve.reading import read_request
from lvlm_runtime.serve.served import ServedBundle
from lvlm_runtime.serve.warming import size_of
from serving import LISTING, ONE_THREAD, PICTURE, QUESTION, Running, running, wait_for

LIMITS = ServingLimits(waiting=2, body_bytes=400_000)


@pytest.fixture(scope="module")
def server(demo_bundle: Path) -> Iterator[Running]:
    places = replace(ONE_THREAD, degrade_to=0.33)
    with running(demo_bundle, places=places, limits=LIMITS) as server:
        yield server


@contextmanager
def held(bundle: ServedBundle) -> Iterator[None]:
    """Its session answers somebody else."""
    with bundle.session.chain.turns.turn():
        yield


class Asking:
    """Requests in threads of their own."""

    def __init__(self, server: Running) -> None:
        self.server = server
        self.answers: dict[str, httpx.Response] = {}
        self.threads: list[threading.Thread] = []

    def ask(self, user: str, **fields: Any) -> None:
        body = {**self.server.asked(QUESTION, PICTURE, user=user), **fields}

        def wait() -> None:
            self.answers[user] = self.server.post(body)

        self.threads.append(threading.Thread(target=wait))
        self.threads[-1].start()

    def join(self) -> dict[str, httpx.Response]:
        for thread in self.threads:
            thread.join()
        return self.answers


def test_a_full_queue_refuses_degrades_and_says_so(server: Running, bundle: ServedBundle) -> None:
    """One is in its turn, two wait: the next of a client that has as many as others is refused."""
    asking, model = Asking(server), f"{server.model}@0.5"
    with held(bundle):
        asking.ask("a", model=model)
        wait_for(lambda: bundle.running)
        asking.ask("b", ratio=None)
        asking.ask("c", ttft_ms=60_000)
        wait_for(lambda: len(bundle.line) == 2)
        refused = server.post(server.asked(QUESTION, PICTURE, user="b"))
        text = server.get("/metrics").text
        assert f'lvlm_waiting_requests{{model="{server.model}"}} 2.0' in text
        assert f'lvlm_running_requests{{model="{server.model}"}} 1.0' in text
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    answers = {user: each.json() for user, each in asking.join().items()}
    assert (answers["a"]["ratio"], answers["a"]["instead_of_ratio"]) == (0.5, None)
    assert answers["c"]["ratio"] == 1.0
    assert answers["b"]["timings"]["waited_ms"] > 0


def test_the_budget_of_a_request_that_names_none(bundle: ServedBundle, server: Running) -> None:
    """With half of the places taken it is that of degrade_to; the answer says instead of which."""
    told: list[Event] = []
    size = size_of(bundle.session, QUESTION, bundle.session.bundle.manifest.layouts[0])
    job = ServedRequest("z", {}, BudgetWish(), size, told.append)
    # The bundle's first ratio is 0.33 itself, so another one is set here.
    kept, bundle.degrade_to = bundle.degrade_to, 0.2
    try:
        assert bundle.budget(job) == (0.33, None)
        asking = Asking(server)
        with held(bundle):
            asking.ask("a")
            wait_for(lambda: bundle.running)
            asking.ask("b", ratio=0.5)
            wait_for(lambda: len(bundle.line) == 1)
            assert bundle.budget(job) == (0.2, 0.33)
            named = replace(job.wish, ratio=1.0)
            assert bundle.budget(ServedRequest("z", {}, named, size, told.append)) == (1.0, None)
        asking.join()
    finally:
        bundle.degrade_to = kept


def test_a_goal_that_waiting_made_impossible_is_refused_as_load(
    server: Running, bundle: ServedBundle
) -> None:
    asking = Asking(server)
    kept, bundle.times = bundle.times, type(bundle.times)()
    try:
        for ratio in bundle.ratios:
            bundle.times.add(ratio, 1, 1e18, 300.0)
        with held(bundle):
            asking.ask("a")
            wait_for(lambda: bundle.running)
            asking.ask("b", ttft_ms=310)
            wait_for(lambda: len(bundle.line) == 1)
            threading.Event().wait(0.05)
        response = asking.join()["b"]
    finally:
        bundle.times = kept
    assert response.status_code == 429
    error = response.json()["error"]
    assert error["code"] == "ttft_goal_not_met"
    assert "so no ratio of" in error["message"]
    assert int(response.headers["Retry-After"]) >= 1


def test_a_deadline_ends_a_request(server: Running, bundle: ServedBundle) -> None:
    server.desk.limits = replace(LIMITS, deadline_s=0.1)
    try:
        with held(bundle):
            response = server.post(server.asked(QUESTION, PICTURE))
    finally:
        server.desk.limits = LIMITS
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    wait_for(lambda: not bundle.running)


def test_who_leaves_the_queue_gives_up_the_place(server: Running, bundle: ServedBundle) -> None:
    asking = Asking(server)
    with held(bundle):
        asking.ask("a")
        wait_for(lambda: bundle.running)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.address}/v1/chat/completions",
                json=server.asked(QUESTION, PICTURE),
                timeout=0.2,
            )
        wait_for(lambda: len(bundle.line) == 0)
    assert asking.join()["a"].status_code == 200


def test_who_leaves_before_the_response_begins_leaves_nothing_behind(server: Running) -> None:
    body = ChatBody(server.model, [ChatMessage("user", "Hello?")])
    read = read_request(body, server.desk.catalogue, LIMITS)

    async def leave() -> Exchange:
        async def gone() -> None:
            await asyncio.sleep(0)

        exchange = Exchange.begin(server.desk, read, "a", gone)
        assert exchange in server.desk.open_requests
        await asyncio.sleep(0.05)
        return exchange

    exchange = asyncio.run(leave())
    assert exchange.job.cancelled
    assert exchange not in server.desk.open_requests


def test_no_token_is_computed_behind_the_one_at_hand(bundle: ServedBundle) -> None:
    """Who left at the third token of two hundred."""
    told: list[Event] = []
    done = threading.Event()

    def tell(event: Event) -> None:
        told.append(event)
        if sum(isinstance(each, Said) for each in told) == 3:
            bundle.leave(job)
        if isinstance(event, Finished):
            done.set()

    content = [{"type": "text", "text": LISTING}]
    messages = [{"role": "user", "content": content}]
    job = ServedRequest(
        "a",
        {"messages": messages, "max_new_tokens": 200, "ignore_stop": True},
        BudgetWish(),
        size_of(bundle.session, LISTING, None),
        tell,
    )
    bundle.put(job)
    assert done.wait(20)
    assert isinstance(told[0], Begun)
    assert isinstance(told[-1], Finished)
    assert len(told[-1].generation.token_ids) == 3
    assert told[-1].generation.finish_reason == "cancelled"


def test_many_at_once_get_the_answers_of_one_alone(server: Running) -> None:
    """The asynchronous client, more requests than places: each is answered or refused with 429."""

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.address}/v1", api_key="none", max_retries=0
        ) as client:
            asked = [
                client.chat.completions.create(
                    **server.asked(QUESTION, PICTURE, user=str(number)), extra_body={"ratio": ratio}
                )
                for number, ratio in enumerate((0.33, 0.5, 1.0) * 2)
            ]
            return await asyncio.gather(*asked, return_exceptions=True)

    answers = asyncio.run(ask())
    refused = [each for each in answers if isinstance(each, BaseException)]
    assert all(isinstance(each, openai.RateLimitError) for each in refused)
    texts = {each.choices[0].message.content for each in answers if each not in refused}
    assert texts == {"yellow"}
    # Two have places whatever the thread that answers is doing.
    assert len(answers) - len(refused) >= 2
