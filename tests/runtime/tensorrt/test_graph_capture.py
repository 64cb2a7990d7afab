"""When a call is captured, replayed, and captured again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lvlm_runtime.tensorrt.graph_capture import Action, Call, CapturePolicy

STEP = Call(1, (("hidden", 4096, (1, 1, 8)), ("logits", 8192, (1, 99))), 512)
PROMPT = Call(0, (("hidden", 4096, (1, 7, 8)), ("logits", 8192, (1, 99))), 512)


class Policy(CapturePolicy):
    """Captures on request, and records the calls."""

    def __init__(self) -> None:
        self.dropped: list[object] = []
        super().__init__(self.dropped.append)

    def do(self, call: Call) -> Action:
        action = self.decide(call)
        if action is Action.CAPTURE:
            self.keep(call, f"graph of {hash(call)}")
        return action


def test_a_call_that_comes_twice_is_captured_and_then_replayed() -> None:
    policy = Policy()
    wanted = [Action.RUN, Action.CAPTURE, Action.REPLAY, Action.REPLAY]
    assert [policy.do(STEP) for _ in range(4)] == wanted
    assert policy.graph(STEP) == f"graph of {hash(STEP)}"


def test_a_prompt_between_answers_leaves_the_captured_step() -> None:
    policy = Policy()
    calls = [PROMPT, STEP, STEP, STEP, PROMPT, STEP, STEP]
    actions = [policy.do(call) for call in calls]
    run, capture, replay = Action.RUN, Action.CAPTURE, Action.REPLAY
    assert actions == [run, run, capture, replay, run, replay, replay]
    assert policy.dropped == []


@pytest.mark.parametrize(
    "other",
    [
        replace(STEP, bindings=(("hidden", 4608, (1, 1, 8)), STEP.bindings[1])),
        replace(STEP, bindings=(("hidden", 4096, (1, 2, 8)), STEP.bindings[1])),
        replace(STEP, scratch=1024),
    ],
    ids=["address", "shape", "scratch"],
)
def test_a_changed_binding_is_captured_anew(other: Call) -> None:
    policy = Policy()
    first = [policy.do(STEP) for _ in range(3)]
    assert first[-1] is Action.REPLAY
    assert [policy.do(other) for _ in range(3)] == [Action.RUN, Action.CAPTURE, Action.REPLAY]
    assert policy.dropped == [f"graph of {hash(STEP)}"]
    assert policy.captured == 1
    assert policy.do(STEP) is Action.RUN


def test_profiles_keep_one_graph_each() -> None:
    policy = Policy()
    for call in (PROMPT, PROMPT, STEP, STEP):
        policy.do(call)
    assert policy.captured == 2
    assert policy.do(PROMPT) is Action.REPLAY
    assert policy.do(STEP) is Action.REPLAY


def test_growing_shapes_are_never_captured() -> None:
    """The decomposed dialect: the filled rows are an input, one longer every step."""
    policy = Policy()
    for length in range(9):
        past = ("past_key.0", 65536, (1, length, 2, 16))
        call = replace(STEP, bindings=(*STEP.bindings, past))
        assert policy.do(call) is Action.RUN
    assert policy.captured == 0


def test_what_cannot_be_captured_is_asked_once() -> None:
    policy = CapturePolicy(lambda graph: None)
    assert policy.decide(STEP) is Action.RUN
    assert policy.decide(STEP) is Action.CAPTURE
    policy.refuse(STEP)
    assert [policy.decide(STEP) for _ in range(3)] == [Action.RUN] * 3
