"""Conversations answer as a fresh session would, and compute nothing twice."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lvlm_export.demo import PICTURES
from lvlm_runtime import LvlmError, SamplingOptions, Session, UsageError
from lvlm_runtime.chain.continued import empty
from lvlm_runtime.chain.recorder import Recorder
from lvlm_runtime.remembered import PictureMemory
from turns import check_turns, first_logits

ONE, OTHER = sorted(PICTURES.glob("*.png"))[:2]
TURNS: tuple[tuple[str, tuple[Path, ...]], ...] = (
    ("How many shapes are there?", (ONE,)),
    ("Is there a red circle?", ()),
    ("And here?", (OTHER,)),
    ("What color is the circle?", ()),
)
LISTING = "What is there from left to right?"
QUESTION_OF_TWO = "Which one is redder?"
CPU: dict[str, Any] = {"backend": "onnxruntime", "device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def session(demo_bundle: Path) -> Session:
    return Session.open(demo_bundle, **CPU)


@pytest.mark.parametrize("chunk", [None, 37])
@pytest.mark.parametrize("ratio", [1.0, 0.33])
def test_turns_are_answered_as_in_a_fresh_session(
    session: Session, ratio: float, chunk: int | None
) -> None:
    reused = check_turns(session, session.chat(prefill_chunk=chunk), ratio, TURNS)
    visual = session.bundle.budget(ratio).layouts[0].tokens_in
    assert reused[0] == 0
    assert all(count > visual for count in reused[1:3]), "the first picture is not computed again"
    assert reused[3] > 2 * visual


@pytest.fixture(scope="module")
def quecc(tiny_quecc: Path) -> Session:
    return Session.open(tiny_quecc / "bundle", **CPU)


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_a_projector_or_site_that_reads_the_question_reads_every_question(
    quecc: Session, ratio: float
) -> None:
    """QueCC's tokens are other ones for every question, and so are what FastV keeps of them."""
    check_turns(quecc, quecc.chat(), ratio, TURNS)


def test_pictures_of_one_conversation_have_a_ratio_each(session: Session) -> None:
    """A request that was computed in pieces is the one that was not, ratio by ratio."""
    answers = []
    for between in (False, True):
        chat = session.chat(prefill_chunk=50 if between else None)
        recorder = Recorder()
        first = chat.ask("How many shapes are there?", [ONE], 1.0, max_new_tokens=3)
        second = chat.ask("And here?", [OTHER], 0.33, max_new_tokens=3)
        if between:
            chat.held = session.chain.empty(chat.context)
            chat.memory.clear()
        logits = first_logits(recorder)
        third = chat.ask("Which is redder?", max_new_tokens=4, recorder=recorder)
        assert (first.ratio, second.ratio) == (1.0, 0.33)
        assert dict(third.visual_tokens)["decoder@5"] == 65, "the first picture has no such site"
        assert third.reused_tokens == 0 if between else third.reused_tokens > 196 + 100
        answers.append((third.token_ids, logits[0]))
    assert answers[0][0] == answers[1][0]
    np.testing.assert_allclose(answers[0][1], answers[1][1], rtol=1e-3, atol=1e-3)


def test_a_template_that_rewrites_history_falls_back_to_the_common_beginning(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = session.chat()
    chat.ask(*TURNS[0], 0.5, max_new_tokens=4)
    encode = type(session.encoder).encode_messages

    def rewriting(self: Any, messages: Any) -> list[int]:
        """Of earlier turns only the picture and a word stay."""
        last = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "So?"}]}
        return encode(self, [last, *messages[1:]] if len(messages) > 1 else messages)

    monkeypatch.setattr(type(session.encoder), "encode_messages", rewriting)
    (reused,) = check_turns(session, chat, 0.5, TURNS[1:2])
    head = len(session.encoder.encode("", 1)) - 1
    visual = session.bundle.budget(0.5).layouts[0].tokens_in
    assert visual < reused < visual + head


def failing(piece: str) -> None:
    raise RuntimeError("stop")


def interrupting(piece: str) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "kind"), [(failing, RuntimeError), (interrupting, KeyboardInterrupt)]
)
def test_an_answer_that_breaks_off_is_forgotten(
    session: Session, error: Any, kind: type[BaseException]
) -> None:
    chat = session.chat()
    check_turns(session, chat, 0.33, TURNS[:1])
    with pytest.raises(kind):
        chat.ask("Is there a blue square?", [OTHER], 0.5, on_text=error)
    assert len(chat.messages) == 2
    assert len(chat.pictures) == 1
    assert not session.busy
    reused = check_turns(session, chat, 0.33, TURNS[1:])
    assert reused[0] > 100


def test_what_does_not_fit_says_so_before_any_graph_runs(session: Session, tmp_path: Path) -> None:
    chat = session.chat(context=340)
    check_turns(session, chat, 1.0, TURNS[:1], tokens=4)
    recorder = Recorder()
    with pytest.raises(LvlmError, match=r"it does not fit: .* room for 340; begin anew \(/reset\)"):
        chat.ask("And here?", [OTHER], 1.0, recorder=recorder)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(LvlmError, match="is not a picture in a known format"):
        chat.ask("And here?", [broken], 0.33, max_new_tokens=2, recorder=recorder)
    assert [span.name for span in recorder.spans] in ([], ["preprocess"])
    with pytest.raises(UsageError, match="max_new_tokens 0 is below 1"):
        chat.ask("And here?", max_new_tokens=0)
    check_turns(session, chat, 1.0, TURNS[1:2], tokens=4)
    chat.reset()
    assert check_turns(session, chat, 1.0, TURNS[:1], tokens=4)[0] > 196, (
        "its picture is held still"
    )


def test_arguments_out_of_range_are_refused(session: Session) -> None:
    with pytest.raises(UsageError, match="a context of 1 is not between 2 and the model's"):
        session.chat(context=1)
    with pytest.raises(UsageError, match="a prefill chunk of 0 rows is below 1"):
        session.chat(prefill_chunk=0)


def test_other_requests_may_come_between(session: Session) -> None:
    chat = session.chat(system=None)
    check_turns(session, chat, 0.33, TURNS[:1])
    session.generate("Is there a red circle?", [OTHER], 1.0, max_new_tokens=2)
    other = session.chat()
    check_turns(session, other, 0.5, TURNS[2:3])
    assert check_turns(session, chat, 0.33, TURNS[1:2])[0] > 100


def test_a_picture_is_what_it_was_when_it_was_shown(session: Session, tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(ONE.read_bytes())
    chat = session.chat()
    check_turns(session, chat, 0.5, [(TURNS[0][0], (copy,))])
    copy.unlink()
    check_turns(session, chat, 0.5, TURNS[1:3])
    with pytest.raises(LvlmError, match="no picture file at"):
        chat.ask("And here?", [copy])


def test_drafts_change_no_token_and_save_calls(session: Session) -> None:
    """The demo's listings repeat themselves; rules, stop and length hold as without drafts."""
    prompt = LISTING
    saved = 0
    for ratio in (1.0, 0.33):
        for picture in (ONE, OTHER):
            plain = session.generate(prompt, [picture], ratio, max_new_tokens=40)
            drafted = session.generate(prompt, [picture], ratio, max_new_tokens=40, speculate=4)
            assert drafted.token_ids == plain.token_ids
            assert plain.decode_calls == len(plain.token_ids) - 1
            assert drafted.decode_calls == plain.decode_calls - drafted.accepted_tokens
            assert drafted.accepted_tokens <= drafted.drafted_tokens
            saved += drafted.accepted_tokens
    assert saved > 0
    with pytest.raises(UsageError, match="cannot draft 16 tokens at once; give 0"):
        session.generate(prompt, [ONE], speculate=16)


def test_drawn_answers_are_the_same_with_drafts(session: Session) -> None:
    """A draft of one token for sure is accepted by what would have been drawn: seed by seed."""
    options = [SamplingOptions(temperature=t, seed=seed) for t in (0.7, 3.0) for seed in range(3)]
    for sampling in options:
        answers = {
            session.generate(
                LISTING,
                [ONE],
                max_new_tokens=24,
                sampling=sampling,
                speculate=speculate,
            ).token_ids
            for speculate in (0, 3)
        }
        assert len(answers) == 1


def test_drafts_work_in_a_conversation(session: Session) -> None:
    check_turns(session, session.chat(speculate=5), 0.33, TURNS, tokens=9)


def test_a_remembered_picture_is_not_computed_again(demo_bundle: Path) -> None:
    """By ``remember`` and by itself; behind a site that reads the question it is chosen from again."""
    plain = Session.open(demo_bundle, **CPU)
    for ratio, until in ((1.0, "the answer"), (0.33, "decoder@4")):
        session = Session.open(demo_bundle, **CPU)
        kept = session.remember(ONE, ratio)
        visual = session.bundle.budget(ratio).layouts[0].tokens_in
        assert (kept.until, kept.tokens) == (until, visual)
        for prompt, _ in TURNS[:3]:
            recorder = Recorder()
            answer = session.generate(prompt, [kept], ratio, max_new_tokens=5, recorder=recorder)
            wanted = plain.generate(prompt, [ONE], ratio, max_new_tokens=5)
            assert answer.token_ids == wanted.token_ids
            assert answer.reused_tokens >= visual
            assert not {"preprocess", "vision.0", "assemble"} & {s.name for s in recorder.spans}
        assert session.generate(TURNS[0][0], [ONE], ratio).reused_tokens >= visual, "by its bytes"
        assert session.chat().ask(TURNS[0][0], [kept]).reused_tokens >= visual


def test_the_memory_drops_what_was_not_used_for_longest(session: Session) -> None:
    memory = PictureMemory(1)
    asked = Session(session.bundle, session.chain, session.encoder, session.generation, memory)
    assert asked.generate(TURNS[0][0], [ONE], 1.0, max_new_tokens=2).reused_tokens == 0
    assert (len(memory), memory.held_bytes) == (0, 0), "larger than the budget alone"
    memory = asked.memory = PictureMemory()
    asked.generate(TURNS[0][0], [ONE], 1.0, max_new_tokens=2)
    assert len(memory) == 2, "its visual tokens and its caches"
    one = memory.held_bytes
    memory.budget_bytes = 2 * one
    for picture in (OTHER, ONE, sorted(PICTURES.glob("*.png"))[2]):
        asked.generate(TURNS[0][0], [picture], 1.0, max_new_tokens=2)
    assert memory.held_bytes <= 2 * one
    assert asked.generate(TURNS[1][0], [ONE], 1.0, max_new_tokens=2).reused_tokens > 196
    assert asked.generate(TURNS[1][0], [OTHER], 1.0, max_new_tokens=2).reused_tokens == 0
    memory.clear()
    assert (len(memory), memory.held_bytes) == (0, 0)
    with pytest.raises(UsageError, match="a memory of -1 bytes is below 0"):
        PictureMemory(-1)


def test_a_prompt_passes_in_chunks(session: Session) -> None:
    for ratio in (1.0, 0.33):
        recorder = Recorder()
        ours = session.generate(
            QUESTION_OF_TWO,
            [ONE, OTHER],
            ratio,
            max_new_tokens=4,
            prefill_chunk=64,
            recorder=recorder,
        )
        assert (
            ours.token_ids
            == session.generate(QUESTION_OF_TWO, [ONE, OTHER], ratio, max_new_tokens=4).token_ids
        )
        rows = [s.tokens for s in recorder.spans if s.name == "decoder.0" and s.phase == "prefill"]
        assert len(rows) > 2
        assert max(rows) <= 64


def test_a_projector_that_reads_the_question_leaves_nothing_to_remember(quecc: Session) -> None:
    with pytest.raises(LvlmError, match="projector reads the question, so nothing of a picture"):
        quecc.remember(ONE)


def test_a_prompt_that_sees_what_is_behind_is_refused() -> None:
    text = SimpleNamespace(attention="prefix")
    decoder: Any = SimpleNamespace(manifest=SimpleNamespace(text=text, family="paligemma"))
    with pytest.raises(LvlmError, match="do not know paligemma's attention yet, in which rows see"):
        empty(decoder, 8)
