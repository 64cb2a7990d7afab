"""An answer piece by piece: how its loop may be left, and what the session is then."""

from __future__ import annotations

import base64
import gc
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lvlm_export.demo import PICTURES
from lvlm_runtime import LvlmError, SamplingOptions, Session, UsageError

PICTURE = sorted(PICTURES.glob("*.png"))[0]
LISTING = "What is there from left to right?"
HOT: dict[str, Any] = {"temperature": 3.0, "seed": 7, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def session(demo_bundle: Path) -> Session:
    return Session.open(demo_bundle, backend="onnxruntime", device="cpu", threads=1)


@pytest.fixture(autouse=True)
def _free(session: Session) -> Iterator[None]:
    """However a test leaves its streams, the session is free and answers as before."""
    yield
    assert (session.busy, session.waiting) == (False, 0)


def test_pieces_are_the_answer_token_by_token(session: Session) -> None:
    whole = session.generate(LISTING, PICTURE, **HOT)
    answer = session.stream(LISTING, PICTURE, **HOT)
    pieces = list(answer)
    assert tuple(piece.token_id for piece in pieces) == whole.token_ids
    assert "".join(piece.text for piece in pieces).strip() == whole.text
    assert answer.generation.text == whole.text
    times = [piece.time_ms for piece in pieces]
    assert times == sorted(times)
    assert times[0] == pytest.approx(answer.generation.time_to_first_token_ms, abs=5)


@pytest.mark.parametrize("speculate", [0, 4])
def test_stop_keeps_what_came(session: Session, speculate: int) -> None:
    whole = session.generate(LISTING, PICTURE, **HOT)
    answer = session.stream(LISTING, PICTURE, speculate=speculate, **HOT)
    for count, _ in enumerate(answer, 1):
        if count == 3:
            answer.stop()
    got = answer.generation
    assert got.token_ids == whole.token_ids[:3]
    assert len(whole.token_ids) > 3
    assert (got.finish_reason, whole.finish_reason) == ("cancelled", "stop")
    assert whole.text.startswith(got.text)


def test_a_loop_that_is_left_frees_the_session(session: Session) -> None:
    expected = session.generate(LISTING, PICTURE, **HOT).token_ids
    answer = session.stream(LISTING, PICTURE, **HOT)
    for _ in answer:
        assert session.busy
        break
    assert not session.busy
    assert answer.generation.token_ids == expected[:1]

    def fail() -> None:
        for _ in session.stream(LISTING, PICTURE, **HOT):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not session.busy
    dropped = iter(session.stream(LISTING, PICTURE, **HOT))
    next(dropped)
    assert session.busy
    del dropped
    gc.collect()
    assert not session.busy
    assert session.generate(LISTING, PICTURE, **HOT).token_ids == expected


def test_a_stream_goes_on_in_another_thread(session: Session) -> None:
    expected = session.generate(LISTING, PICTURE, **HOT).token_ids
    pieces, got = iter(session.stream(LISTING, PICTURE, **HOT)), []
    got.append(next(pieces).token_id)
    thread = threading.Thread(target=lambda: got.extend(piece.token_id for piece in pieces))
    thread.start()
    thread.join(60)
    assert tuple(got) == expected


def test_the_loop_over_a_stream_cannot_ask_again(session: Session) -> None:
    def ask_again() -> None:
        for _ in session.stream(LISTING, PICTURE, **HOT):
            session.generate("again?", max_new_tokens=1)

    with pytest.raises(UsageError, match="would wait for itself; ask again when the answer"):
        ask_again()


def test_a_stream_is_read_once_and_before_it_is_looked_at(session: Session) -> None:
    answer = session.stream(LISTING, PICTURE, max_new_tokens=1)
    with pytest.raises(UsageError, match="no token of this answer has come; read it first"):
        _ = answer.generation
    list(answer)
    with pytest.raises(UsageError, match="this answer was read already; its text is in generation"):
        list(answer)


def test_what_needs_no_turn_is_refused_at_once(session: Session) -> None:
    for words, line in (
        ({"ratio": 0.4}, r"ratio 0.4 is not in this bundle"),
        ({"temperature": -1}, r"temperature is -1; give 0"),
        ({"stop": ""}, r"stop has ''"),
        ({"stop": "a", "ignore_stop": True}, "stop and ignore_stop exclude each other"),
        ({"seed": 1, "sampling": SamplingOptions()}, "sampling and seed exclude each other"),
        ({"ratio": 0.5, "ttft": "1s"}, "ratio and ttft exclude each other; give one of them"),
        ({"ttft": 0.3}, r"0.3 is not a time; write 300ms or 0.3s"),
        ({"max_new_tokens": 0}, "max_new_tokens 0 is below 1"),
    ):
        with pytest.raises(UsageError, match=line):
            session.stream(LISTING, PICTURE, **words)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"'temprature'; did you mean temperature\?"):
        session.stream(LISTING, temprature=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"'zzz'; known are ignore_stop, .*, top_p$"):
        session.generate_ids([5], zzz=1)  # type: ignore[call-arg]
    with pytest.raises(LvlmError, match="never profiled on this machine"):
        session.stream(LISTING, PICTURE, ttft="1s")


def test_keywords_choose_as_sampling_options_do(session: Session) -> None:
    options = SamplingOptions(temperature=3.0, top_k=9, seed=7, rules=False)
    one = session.generate(LISTING, PICTURE, sampling=options, max_new_tokens=6)
    words: dict[str, Any] = {"temperature": 3.0, "top_k": 9, "seed": 7, "rules": False}
    assert session.generate(LISTING, PICTURE, **words, max_new_tokens=6).token_ids == one.token_ids


def test_an_answer_ends_before_a_stop_text(session: Session) -> None:
    whole = session.generate(LISTING, PICTURE, **HOT)
    stop = whole.text[len(whole.text) // 2 :][:3]
    pieces: list[str] = []
    got = session.generate(
        LISTING, PICTURE, stop=["never said", stop], on_text=pieces.append, **HOT
    )
    assert got.text == whole.text[: whole.text.find(stop)].strip()
    assert "".join(pieces).strip() == got.text
    assert got.finish_reason == "stop"
    assert got.token_ids == whole.token_ids[: len(got.token_ids)]
    assert len(got.token_ids) < len(whole.token_ids)


def test_timings_name_every_stage(session: Session) -> None:
    answer = session.generate(LISTING, PICTURE, 0.5, max_new_tokens=3, ignore_stop=True)
    calls = {(each.name, each.phase): each.calls for each in answer.timings}
    assert calls["preprocess", "preprocess"] == calls["vision.0", "vision"] == 1
    assert calls["lm_head", "prefill"] == 1
    assert calls["decoder.0", "decode"] == calls["lm_head", "decode"] == 2
    graphs = sum(each.total_ms for each in answer.timings if each.phase != "decode")
    assert 0 < graphs <= answer.time_to_first_token_ms


def test_turns_of_a_chat_are_kept_by_stop_and_forgotten_by_leaving(session: Session) -> None:
    chat = session.chat(sampling=SamplingOptions(temperature=3.0, seed=7))
    for _ in chat.stream(LISTING, PICTURE, max_new_tokens=9):
        break
    assert (chat.messages, chat.pictures) == ([], [])
    answer = chat.stream(LISTING, PICTURE, max_new_tokens=9)
    for _ in answer:
        answer.stop()
    assert chat.messages[-1] == {"role": "assistant", "content": answer.generation.text}
    assert len(chat.messages) == 2
    assert chat.ask("And now?", max_new_tokens=2).reused_tokens > 65


def test_a_session_says_what_it_is_and_closes(demo_bundle: Path) -> None:
    with Session.open(demo_bundle, device="cpu", threads=1) as session:
        assert session.ratios == (0.33, 0.5, 1.0)
        session.warmup([0.5])
        said = repr(session)
        assert said.startswith(f"<Session of {demo_bundle}: llava by illava, ratios 0.33, 0.5, 1")
        assert said.endswith("float32; onnxruntime on cpu>")
        chat = session.chat()
    assert repr(session).endswith("; closed>")
    session.close()
    for ask in (session.generate, chat.ask):
        with pytest.raises(UsageError, match=r"this session is closed; open another one"):
            ask(LISTING, max_new_tokens=1)


def data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def test_messages_ask_what_a_prompt_asks(session: Session) -> None:
    expected = session.generate(LISTING, PICTURE, max_new_tokens=6, system="Be short.")
    text = {"type": "text", "text": LISTING}
    for shown in (data_url(PICTURE), str(PICTURE), io.BytesIO(PICTURE.read_bytes())):
        picture = {"type": "image_url", "image_url": {"url": shown}}
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [picture, text]},
        ]
        assert session.generate(messages=messages, max_new_tokens=6).token_ids == expected.token_ids


def test_a_chat_in_messages_is_that_of_a_conversation(session: Session) -> None:
    chat = session.chat()
    first = chat.ask(LISTING, PICTURE, max_new_tokens=6)
    second = chat.ask("And is there a circle?", max_new_tokens=6)
    messages: list[dict[str, Any]] = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": data_url(PICTURE)}},
                {"type": "text", "text": LISTING},
            ],
        },
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And is there a circle?"},
    ]
    assert session.generate(messages=messages, max_new_tokens=6).token_ids == second.token_ids


def test_one_question_is_asked_once(session: Session) -> None:
    messages = [{"role": "user", "content": LISTING}]
    with pytest.raises(UsageError, match=r"nothing is asked; give a prompt, or messages"):
        session.stream(images=PICTURE)
    with pytest.raises(UsageError, match="messages and a prompt exclude each other"):
        session.stream(LISTING, messages=messages)
    with pytest.raises(UsageError, match="messages and images exclude each other"):
        session.stream(images=[PICTURE], messages=messages)
    with pytest.raises(UsageError, match="messages and system exclude each other"):
        session.stream(messages=messages, system="Be short.")
    with pytest.raises(LvlmError, match=r"https://x/cat.jpg is an address, and a picture is never"):
        session.generate(LISTING, "https://x/cat.jpg")
