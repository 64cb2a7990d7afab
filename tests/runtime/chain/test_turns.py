"""One session in several threads: every answer is that of a session of its own, in the order asked."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from lvlm_runtime import LvlmError, SamplingOptions, Session, UsageError
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.chain.turns import Turns

THREADS = 8


@pytest.fixture(scope="module")
def bundle(tiny_llava: Path) -> Path:
    return tiny_llava / "bundle"


@pytest.fixture(scope="module")
def session(bundle: Path) -> Session:
    return Session.open(bundle, device="cpu", threads=1)


def kinds() -> list[dict[str, Any]]:
    """Requests of all ratios, of none to two pictures, several lengths, greedy and drawn."""
    random = np.random.default_rng(5)
    found: list[dict[str, Any]] = []
    for number in range(12):
        pictures = [
            random.integers(0, 256, (40 + number, 60, 3), dtype=np.uint8) for _ in range(number % 3)
        ]
        sampling = SamplingOptions(temperature=2.0, seed=number) if number % 2 else None
        found.append(
            {
                "prompt": "what is it? " * (1 + number % 4) + str(number),
                "images": pictures,
                "ratio": (0.5, 0.33, 1.0)[number // 3 % 3],
                "max_new_tokens": 1 + number % 3,
                **({} if sampling is None else {"sampling": sampling}),
            }
        )
    return found


def until(reached: Callable[[], bool]) -> None:
    """Wait for another thread; an assertion where it takes longer than it can."""
    end = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < end, "the other thread did not get there"
        time.sleep(0.001)


@pytest.mark.parametrize("requests", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_answers_of_eight_threads_are_those_of_fresh_sessions(
    bundle: Path, session: Session, requests: int
) -> None:
    asked = kinds()
    expected = [
        Session.open(bundle, device="cpu", threads=1).generate(**each).token_ids for each in asked
    ]
    assert len(set(expected)) > 8, "requests whose answers differ, or mixing would not show"

    def ask(number: int) -> tuple[int, tuple[int, ...]]:
        return number % len(asked), session.generate(**asked[number % len(asked)]).token_ids

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(ask, range(requests)))
    wrong = [kind for kind, got in answers if got != expected[kind]]
    assert len(answers) == requests
    assert wrong == []
    assert (session.busy, session.waiting) == (False, 0)


def test_requests_are_answered_in_the_order_in_which_they_came() -> None:
    turns, order = Turns(), []

    def ask(number: int) -> None:
        with turns.turn():
            order.append(number)

    threads = []
    with turns.turn():
        for number in range(6):
            threads.append(threading.Thread(target=ask, args=(number,)))
            threads[-1].start()
            until(lambda: turns.waiting == len(threads))
        assert turns.busy
    for thread in threads:
        thread.join()
    assert order == list(range(6))
    assert not turns.busy


def test_one_that_asks_again_and_again_stands_behind_the_others() -> None:
    turns, order = Turns(), []

    def ask_twice(name: str) -> None:
        for _ in range(2):
            with turns.turn():
                order.append(name)
                until(lambda: turns.waiting == 1 or len(order) > 2)

    with turns.turn():
        threads = [threading.Thread(target=ask_twice, args=(name,)) for name in "ab"]
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda number=number: turns.waiting == number + 1)  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert order == ["a", "b", "a", "b"]


def test_a_session_says_that_it_is_busy_and_who_waits(session: Session) -> None:
    seen: list[tuple[bool, int]] = []
    other = threading.Thread(target=lambda: session.generate("b", max_new_tokens=1))

    def look(_: str, __: Any) -> None:
        if not seen:
            seen.append((session.busy, session.waiting))
            other.start()
            until(lambda: session.waiting == 1)
            seen.append((session.busy, session.waiting))

    answer = session.generate("a", max_new_tokens=1, recorder=Recorder(on_stage=look))
    other.join()
    assert seen == [(True, 0), (True, 1)]
    assert (session.busy, session.waiting) == (False, 0)
    assert answer.waited_ms < 1000


def test_waiting_is_counted_apart(session: Session) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with session.chain.turns.turn():
            held.set()
            release.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    threading.Timer(0.3, release.set).start()
    answer = session.generate("a", max_new_tokens=1)
    holder.join()
    assert answer.waited_ms > 250
    assert answer.time_to_first_token_ms < answer.waited_ms


class ClosedError(Exception):
    """What a consumer raises that wants no more of a stream."""


@pytest.mark.parametrize("error", [ClosedError, KeyboardInterrupt, BrokenPipeError, SystemExit])
def test_a_consumer_that_raises_leaves_nothing_behind(
    bundle: Path, session: Session, error: type[BaseException]
) -> None:
    asked = kinds()[1]
    expected = Session.open(bundle, device="cpu", threads=1).generate(**asked).token_ids

    def refuse(*_: Any) -> None:
        raise error

    hot = SamplingOptions(temperature=5.0, seed=1)
    for stopped in (
        {"on_text": refuse, "sampling": hot, "max_new_tokens": 20},
        {"recorder": Recorder(on_stage=refuse)},
    ):
        with pytest.raises(error):
            session.generate("another question", [asked["images"][0]], **stopped)  # type: ignore[arg-type]
        assert not session.busy
        assert session.generate(**asked).token_ids == expected


def test_a_request_that_fails_lets_the_next_one_in(session: Session) -> None:
    with pytest.raises(LvlmError, match="no picture file"):
        session.generate("a", ["absent.png"])
    with pytest.raises(UsageError, match=r"ratio 0\.4 is not in this bundle"):
        session.generate("a", ratio=0.4)
    with pytest.raises(UsageError, match="max_new_tokens 0 is below 1"):
        session.generate_ids([1, 2], max_new_tokens=0)
    assert not session.busy
    assert session.generate("a", max_new_tokens=1).token_ids


def test_a_callback_that_asks_the_session_again_is_refused(session: Session) -> None:
    """It would wait for itself; another thread's request is answered afterwards."""

    def ask_again(_: str, __: Any) -> None:
        session.generate("b", max_new_tokens=1)

    with pytest.raises(UsageError, match="would wait for itself; ask again when the answer"):
        session.generate("a", max_new_tokens=1, recorder=Recorder(on_stage=ask_again))
    assert not session.busy
    assert session.generate("a", max_new_tokens=1).token_ids


def test_steps_of_the_chain_wait_for_a_request_too(session: Session) -> None:
    """Whoever drives the chain by hand, as a measurement does, stands in the same line."""
    done = threading.Event()

    def step() -> None:
        session.chain.prefill([[5, 6]], None, None, 1, Recorder())
        done.set()

    other = threading.Thread(target=step)
    with session.chain.turns.turn():
        other.start()
        until(lambda: session.waiting == 1)
        assert not done.is_set()
    other.join()
    assert done.is_set()


def test_an_interrupt_at_any_line_leaves_the_line_in_order() -> None:
    """Ctrl-C may come wherever a ticket is taken or given back."""
    at = 0
    while interrupted_turn(line := at):
        at += 1
    assert line > 8, "the lines of joining and leaving"


def interrupted_turn(number: int) -> bool:
    """Interrupt a turn at its n-th line of ``_join`` and ``_leave``; False if it has fewer."""
    turns, left = Turns(), number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_name not in ("_join", "_leave"):
            return trace
        if event == "line":
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with turns.turn():
            pass
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
    finally:
        sys.settrace(before)
    assert (turns.busy, turns.waiting) == (False, 0), f"line {number}"
    with turns.turn():
        assert turns.busy
    return interrupted
