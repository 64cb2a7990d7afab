"""``Session`` as a program uses it, on the demo bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lvlm_export.demo import PICTURES
from lvlm_runtime import LvlmError, SamplingOptions, Session, UsageError
from lvlm_runtime.chain.recorder import Recorder

PICTURE = sorted(PICTURES.glob("*.png"))[0]
QUESTION = "How many shapes are there?"
WARM = SamplingOptions(temperature=2.0, top_k=50, seed=7)


@pytest.fixture(scope="module")
def session(demo_bundle: Path) -> Session:
    return Session.open(demo_bundle, device="cpu", threads=1)


def test_the_first_ratio_is_the_default(session: Session) -> None:
    answer = session.generate(QUESTION, [PICTURE], max_new_tokens=2)
    assert answer.ratio == 0.33
    assert answer.visual_tokens == (
        ("vision", 196),
        ("vision@2", 157),
        ("vision@3", 125),
        ("vision@4", 100),
        ("decoder", 100),
        ("decoder@4", 81),
        ("decoder@5", 65),
    )


def test_a_ratio_is_chosen_per_request(session: Session) -> None:
    tokens = {
        ratio: session.generate(QUESTION, [PICTURE], ratio, max_new_tokens=1).visual_tokens[-1][1]
        for ratio in (1.0, 0.5, 0.33)
    }
    assert tokens == {1.0: 196, 0.5: 98, 0.33: 65}


def test_requests_leave_nothing_behind(session: Session) -> None:
    """A request between two equal ones, at another budget and length, changes nothing."""
    first = session.generate(QUESTION, [PICTURE], 0.5, max_new_tokens=8)
    session.generate("Is there a red circle?", [PICTURE, PICTURE], 1.0, max_new_tokens=3)
    assert session.generate(QUESTION, [PICTURE], 0.5, max_new_tokens=8).token_ids == first.token_ids


def test_every_source_of_a_picture_gives_the_same_answer(session: Session) -> None:
    with Image.open(PICTURE) as image:
        sources = [PICTURE, str(PICTURE), PICTURE.read_bytes(), image.copy(), np.asarray(image)]
        answers = {
            session.generate(QUESTION, [each], max_new_tokens=4).token_ids for each in sources
        }
    assert len(answers) == 1


def test_several_images_count_and_differ_by_order(session: Session) -> None:
    other = sorted(PICTURES.glob("*.png"))[1]
    recorders = [Recorder(), Recorder()]
    logits: list[np.ndarray] = []
    for recorder, images in zip(recorders, ([PICTURE, other], [other, PICTURE]), strict=True):
        seen: dict[str, np.ndarray] = {}
        recorder.on_stage = lambda name, value, seen=seen: seen.setdefault(
            name, value.numpy().copy()
        )
        answer = session.generate(QUESTION, images, 0.5, max_new_tokens=1, recorder=recorder)
        assert dict(answer.visual_tokens)["decoder@5"] == 2 * 98
        logits.append(seen["lm_head"])
    assert not np.allclose(logits[0], logits[1])


def test_a_question_without_pictures_needs_no_reducer(session: Session) -> None:
    recorder = Recorder()
    answer = session.generate(QUESTION, max_new_tokens=3, recorder=recorder)
    assert answer.visual_tokens == ()
    assert {span.name for span in recorder.spans} == {
        "decoder.0",
        "decoder.1",
        "decoder.2",
        "lm_head",
    }


def test_streamed_pieces_are_the_answer(session: Session) -> None:
    pieces: list[str] = []
    answer = session.generate(
        QUESTION, [PICTURE], max_new_tokens=24, sampling=WARM, on_text=pieces.append
    )
    assert "".join(pieces).strip() == answer.text


def test_a_seed_draws_the_same_answer(session: Session) -> None:
    draws = [
        session.generate(
            QUESTION,
            [PICTURE],
            max_new_tokens=12,
            sampling=SamplingOptions(temperature=5.0, seed=seed),
        ).token_ids
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_the_answer_ends_at_the_limit_or_a_stop_token(session: Session) -> None:
    hot = SamplingOptions(temperature=100.0, seed=0)
    answer = session.generate(QUESTION, [PICTURE], max_new_tokens=3, sampling=hot)
    stop = session.bundle.manifest.text.stop_ids
    ended = answer.token_ids[-1] in stop
    assert answer.finish_reason == ("stop" if ended else "length")
    assert ended or len(answer.token_ids) == 3


def test_times_add_up(session: Session) -> None:
    recorder = Recorder()
    answer = session.generate(QUESTION, [PICTURE], 0.5, max_new_tokens=4, recorder=recorder)
    inside = recorder.total_ms("preprocess", "vision", "prefill")
    assert 0 <= answer.own_time_ms < answer.time_to_first_token_ms
    assert inside + answer.own_time_ms == pytest.approx(answer.time_to_first_token_ms, abs=1e-6)


def test_caches_hold_what_their_layers_saw(session: Session) -> None:
    """Layers before the site hold the whole prompt, layers after it the reduced one."""
    manifest = session.bundle.manifest
    budget = session.bundle.budget(0.33)
    recorder = Recorder()
    pixels = np.zeros((1, 3, 112, 112), np.float32)
    visual = session.chain.encode(pixels, budget, budget.layouts[0], recorder)
    state, _ = session.chain.prefill([[5, 6], [7, 8, 9]], visual, budget.layouts[0], 10, recorder)
    assert [group.length for group in state.groups] == [5 + 100, 5 + 81, 5 + 65]
    assert [group.capacity for group in state.groups] == [5 + 100 + 10, 5 + 81 + 10, 5 + 65 + 10]
    assert state.position == 5 + 196, "text continues as if nothing had been taken out"
    buffers = [next(iter(group.buffers.values())) for group in state.groups]
    before = [buffer.numpy().copy() for buffer in buffers]
    session.chain.step(state, 5, recorder)
    rows = {"head_major": 2, "sequence_major": 1}[manifest.kv_layout]
    for group, buffer, old in zip(state.groups, buffers, before, strict=True):
        new, old = (np.moveaxis(each, rows, 0) for each in (buffer.numpy(), old))
        row = group.length - 1
        np.testing.assert_array_equal(new[:row], old[:row])
        assert np.abs(new[row]).max() > 0, "written in place, in the very same buffer"
    assert [stage.first_layer for stage in manifest.decoder] == [0, 4, 5]


def test_a_ratio_that_is_not_there_names_those_that_are(session: Session) -> None:
    with pytest.raises(UsageError, match=r"ratio 0.4 is not in this bundle; it has 0.33, 0.5, 1"):
        session.generate(QUESTION, [PICTURE], 0.4)


def test_an_answer_of_no_tokens_is_refused(session: Session) -> None:
    with pytest.raises(UsageError, match="max_new_tokens 0 is below 1; give 1 or more"):
        session.generate(QUESTION, [PICTURE], max_new_tokens=0)


def test_more_placeholders_than_pictures_are_refused(session: Session) -> None:
    token = session.bundle.manifest.text.image_token_id
    with pytest.raises(LvlmError, match="1 image placeholders and 0 images"):
        session.generate_ids([5, token, 6])
