"""Several requests, processors of scores, and requests that are awaited."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lvlm_export.demo import PICTURES
from lvlm_runtime import LvlmError, Session, UsageError
from lvlm_runtime import pieces as pieces_of
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.remembered import PictureMemory

ONE, OTHER = sorted(PICTURES.glob("*.png"))[:2]
LISTING = "What is there from left to right?"
QUESTIONS: list[dict[str, Any]] = [
    {"prompt": LISTING, "images": ONE, "ratio": 1.0},
    {"prompt": "Is there a red circle?", "images": [OTHER]},
    {"prompt": "What is a circle?", "max_new_tokens": 3},
    {"prompt": LISTING, "images": [OTHER, ONE], "temperature": 2.0, "seed": 5},
    {"prompt": LISTING, "images": ONE, "prefill_chunk": 50},
]


@pytest.fixture(scope="module")
def session(demo_bundle: Path) -> Session:
    return Session.open(demo_bundle, backend="onnxruntime", device="cpu", threads=1)


def test_a_batch_is_answered_as_one_by_one(session: Session) -> None:
    alone = [session.generate(**{"max_new_tokens": 6, **each}).token_ids for each in QUESTIONS]
    batch = list(session.generate_batch(QUESTIONS, max_new_tokens=6))  # type: ignore[arg-type]
    assert [each.token_ids for each in batch] == alone
    for answer in batch:
        assert answer.own_time_ms >= 0
        names = [each.name for each in answer.timings]
        assert ("preprocess" in names) == bool(answer.visual_tokens)


def test_the_next_pictures_are_read_while_one_is_answered(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, prepare = threading.Event(), pieces_of.prepare
    threads: list[int] = []

    def noted(loaded: Any, asked: Any) -> Any:
        threads.append(threading.get_ident())
        if len(threads) == 2:
            begun.set()
        return prepare(loaded, asked)

    def wait(_: str, __: Any) -> None:
        assert begun.wait(20), "the second request was not begun during the first"

    monkeypatch.setattr(pieces_of, "prepare", noted)
    recorder = Recorder(on_stage=wait)
    asked = [{**QUESTIONS[0], "recorder": recorder}, QUESTIONS[1]]
    assert len(list(session.generate_batch(asked, max_new_tokens=1))) == 2  # type: ignore[arg-type]
    assert threading.get_ident() not in threads


def test_a_request_that_fails_raises_in_its_place(session: Session) -> None:
    answers = session.generate_batch(
        [{"prompt": LISTING}, {"prompt": LISTING, "images": "absent.png"}], max_new_tokens=1
    )
    assert next(answers).token_ids
    with pytest.raises(LvlmError, match=r"no picture file at absent\.png"):
        next(answers)
    assert not session.busy
    with pytest.raises(UsageError, match=r"ratio 0\.4 is not in this bundle"):
        session.generate_batch([{"prompt": LISTING}, {"prompt": LISTING, "ratio": 0.4}])
    with pytest.raises(UsageError, match="a recorder takes one request; give every question its"):
        session.generate_batch([], recorder=Recorder())
    with pytest.raises(TypeError, match=r"'image'; did you mean images\?"):
        session.generate_batch([{"image": ONE}])  # type: ignore[typeddict-unknown-key]


def test_a_batch_uses_the_memory_of_pictures(demo_bundle: Path) -> None:
    with Session.open(demo_bundle, device="cpu", threads=1) as session:
        session.memory = PictureMemory()
        asked = [{"prompt": each, "images": ONE} for each in (LISTING, "Is there a circle?")]
        first, second = session.generate_batch(asked, max_new_tokens=1)  # type: ignore[arg-type]
        assert (first.reused_tokens, second.reused_tokens > 65) == (0, True)


def test_a_processor_changes_scores_behind_the_rules(session: Session) -> None:
    seen: list[tuple[int, int]] = []
    plain = session.generate(LISTING, ONE, max_new_tokens=3)

    def ban(ids: Sequence[int], scores: np.ndarray) -> np.ndarray:
        seen.append((len(ids), scores.size))
        scores[plain.token_ids[0]] = -np.inf
        return scores

    answer = session.generate(LISTING, ONE, max_new_tokens=3, logits_processor=ban, speculate=2)
    assert plain.token_ids[0] not in answer.token_ids
    size = session.bundle.manifest.text.vocab_size
    # As `generate` of transformers counts ids: all image tokens of ratio 1.0.
    assert [each for each, _ in seen] == [seen[0][0] + n for n in range(len(answer.token_ids))]
    assert seen[0][0] > 196
    assert {each for _, each in seen} == {size}
    both = session.generate(
        LISTING, ONE, max_new_tokens=3, logits_processor=[ban, lambda _, scores: scores * 2]
    )
    assert both.token_ids == answer.token_ids


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (lambda _, scores: None, r"logits processor <lambda> returned <class 'NoneType'>; return"),
        (lambda _, scores: scores[:3], r"returned float32 \[3\]; return scores of float32 \[\d+\]"),
        (lambda _, scores: scores.astype(int), r"returned int64 \[\d+\]; return scores"),
        (lambda _, scores: scores - np.inf, "made a largest score of -inf, a finite number is"),
        (lambda _, scores: scores + np.nan, "made a largest score of nan"),
    ],
)
def test_scores_that_are_none_are_refused(session: Session, given: Any, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        session.generate(LISTING, max_new_tokens=2, logits_processor=given)
    assert not session.busy


def test_awaited_answers_are_the_same_and_the_loop_goes_on(session: Session) -> None:
    expected = session.generate(LISTING, ONE, max_new_tokens=6).token_ids
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def ask() -> None:
        other = asyncio.create_task(tick())
        texts: list[str] = []
        one, two = await asyncio.gather(
            session.generate_async(LISTING, ONE, max_new_tokens=6, on_text=texts.append),
            session.generate_async(LISTING, ONE, max_new_tokens=6),
        )
        assert one.token_ids == two.token_ids == expected
        assert "".join(texts).strip() == one.text
        answer = session.stream(LISTING, ONE, max_new_tokens=6)
        assert tuple([piece.token_id async for piece in answer]) == expected
        other.cancel()

    asyncio.run(ask())
    assert ticks > 10
    assert not session.busy


def test_a_task_that_is_cancelled_frees_the_session(session: Session) -> None:
    async def ask() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(
            session.generate_async(
                LISTING,
                ONE,
                max_new_tokens=500,
                ignore_stop=True,
                on_text=lambda _: begun.set(),
            )
        )
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not session.busy
        async for _ in session.stream(LISTING, ONE, max_new_tokens=50, ignore_stop=True):
            break
        await asyncio.sleep(0)

    asyncio.run(ask())
    end = time.monotonic() + 20
    while session.busy:
        assert time.monotonic() < end
        time.sleep(0.001)
    assert session.generate(LISTING, ONE, max_new_tokens=1).token_ids
