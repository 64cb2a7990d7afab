"""Measuring: what adds up, what is interleaved, and when a warm-up ends."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from command_line import PICTURE, QUESTION
from lvlm_runtime.backends.clock import HostClock, clock_of
from lvlm_runtime.chain.recorder import Recorder, Span
from lvlm_runtime.profile import rounds
from lvlm_runtime.profile.options import ProfileOptions
from lvlm_runtime.profile.rounds import TimedAnswer, measure_rounds, rotated, settled
from lvlm_runtime.session import Generation, Session

RATIOS = (0.33, 1.0)


SHORT = ProfileOptions(QUESTION, (PICTURE,), RATIOS, answer_tokens=4, iterations=3, warmup=1)


@pytest.fixture(scope="module")
def session(demo_bundle: Path) -> Session:
    return Session.open(demo_bundle, "onnxruntime", "cpu", threads=1)


def test_times_agree_with_a_stopwatch_around_the_same_call(session: Session) -> None:
    """Within 2 % in the median of several calls: one may be interrupted outside the timed part."""
    session.generate(QUESTION, [PICTURE], 1.0, max_new_tokens=1)
    differences = []
    for _ in range(7):
        start = time.perf_counter()
        answer = session.generate(QUESTION, [PICTURE], 1.0, max_new_tokens=1)
        stopwatch_ms = (time.perf_counter() - start) * 1e3
        differences.append(stopwatch_ms / answer.time_to_first_token_ms - 1)
    assert 0 <= median(differences) < 0.02


def test_stages_add_up_to_the_times_that_they_are_parts_of(session: Session) -> None:
    sample = rounds.time_request(session, SHORT, 0.33, 4)
    stages = sample.stages()
    first = sum(ms for (phase, _), (_, ms) in stages.items() if phase != "decode")
    further = sum(ms for (phase, _), (_, ms) in stages.items() if phase == "decode")
    assert first == pytest.approx(sample.ttft_ms)
    assert further == pytest.approx(sample.tpot_ms)
    assert sample.end_to_end_ms == pytest.approx(sample.ttft_ms + 3 * (sample.tpot_ms or 0))
    assert sample.end_to_end_ms <= sample.wall_ms
    names = [name for phase, name in stages if phase != "decode"]
    assert names[:3] == ["tokenize", "preprocess", "vision.0"]
    assert names[-2:] == ["sample", "host"]
    assert {"vision@2", "embedding", "assemble", "decoder.0", "decoder@4", "lm_head"} <= set(names)
    decode = {name for phase, name in stages if phase == "decode"}
    assert decode == {
        "detokenize",
        "embedding",
        "decoder.0",
        "decoder.1",
        "decoder.2",
        "lm_head",
        "sample",
        "host",
    }
    assert all(ms >= 0 for _, ms in stages.values())


def test_stages_of_known_spans() -> None:
    spans = (
        Span("vision.0", "vision", 5.0, 196, 1),
        Span("lm_head", "prefill", 2.0, 1, 2),
        Span("decoder.0", "decode", 3.0, 1, 3),
        Span("decoder.0", "decode", 5.0, 1, 4),
    )
    answer = Generation("", (1, 2, 3), "length", 1.0, (), 5, 10.0, 200.0, 0.0, ())
    sample = TimedAnswer(answer, spans, 25.0)
    assert sample.end_to_end_ms == 20.0
    assert sample.stages() == {
        ("vision", "vision.0"): (196, 5.0),
        ("prefill", "lm_head"): (1, 2.0),
        ("prefill", "host"): (0, 3.0),
        ("decode", "decoder.0"): (1, 4.0),
        ("decode", "host"): (0, 1.0),
    }


def test_an_answer_of_one_token_has_no_time_per_token(session: Session) -> None:
    sample = rounds.time_request(session, SHORT, 1.0, 1)
    assert sample.tpot_ms is None
    assert sample.end_to_end_ms == sample.ttft_ms
    assert not [key for key in sample.stages() if key[0] == "decode"]


def test_every_answer_is_as_long_as_asked(session: Session) -> None:
    """The demo model stops after a word; a measurement continues."""
    assert len(session.generate(QUESTION, [PICTURE], 1.0, max_new_tokens=40).token_ids) < 40
    assert len(rounds.time_request(session, SHORT, 1.0, 40).generation.token_ids) == 40


def test_rounds_are_interleaved_and_begin_with_another_budget_each(session: Session) -> None:
    calls: list[tuple[str, float]] = []
    found = measure_rounds(session, SHORT, lambda what, ratio: calls.append((what, ratio)))
    one, other = RATIOS
    assert calls[:2] == [("warming up", one), ("warming up", other)]
    assert [ratio for what, ratio in calls if what == "measuring"] == [
        one,
        other,
        other,
        one,
        one,
        other,
    ]
    assert {ratio: len(samples) for ratio, samples in found.samples.items()} == {one: 3, other: 3}
    assert set(found.first) == set(RATIOS)
    assert (found.warmup_rounds, found.stable) == (1, True)
    assert {ratio: len(pairs) for ratio, pairs in found.checks.items()} == {one: 3, other: 3}


def test_without_a_warm_up_the_first_request_is_known_all_the_same(session: Session) -> None:
    found = measure_rounds(session, replace(SHORT, warmup=0, iterations=2, ratios=(0.33,)))
    assert found.first[0.33] is found.samples[0.33][0]
    assert (found.warmup_rounds, found.stable) == (0, True)


def test_a_duration_measures_at_least_five_rounds(session: Session) -> None:
    found = measure_rounds(
        session, replace(SHORT, iterations=None, duration_s=0.001, ratios=(0.33,))
    )
    assert len(found.samples[0.33]) == rounds.LEAST_ROUNDS


def test_a_warm_up_ends_when_times_settle() -> None:
    assert not settled([10.0, 10.0])
    assert settled([50.0, 10.0, 10.2, 10.4])
    assert not settled([10.0, 10.0, 10.6])


def test_a_warm_up_that_never_settles_ends_at_its_limit(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "settled", lambda _: False)
    endless = replace(SHORT, warmup=None, iterations=1, ratios=(0.33,), answer_tokens=1)
    found = measure_rounds(session, endless)
    assert (found.warmup_rounds, found.stable) == (rounds.WARMUP_LIMIT, False)


def test_rotation_keeps_all_budgets() -> None:
    assert [rotated((1, 2, 3), n) for n in range(4)] == [(1, 2, 3), (2, 3, 1), (3, 1, 2), (1, 2, 3)]


def test_the_warm_up_rule_is_told() -> None:
    assert rounds.warmup_rule(SHORT) == "1 rounds, as asked"
    assert "within 5% of their median, at most 10 rounds" in rounds.warmup_rule(
        replace(SHORT, warmup=None)
    )


class EventClock:
    """A device's clock by which every call took 7 ms."""

    name = "events"

    def start(self) -> str:
        return "mark"

    def stop(self, mark: str) -> float:
        assert mark == "mark"
        return 7.0


def test_a_backend_with_events_times_its_own_graph_calls() -> None:
    class Backend:
        def clock(self) -> EventClock:
            return EventClock()

    recorder = Recorder(clock=clock_of(Backend()))
    with recorder.span("vision.0", "vision", 3):
        pass
    with recorder.step("sample", "prefill", 1):
        pass
    [call, step] = recorder.in_order()
    assert (call.name, call.duration_ms) == ("vision.0", 7.0)
    assert step.duration_ms < 7.0, "steps of the host are on the host's clock"
    assert isinstance(clock_of(object()), HostClock)
