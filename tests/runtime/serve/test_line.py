"""The line in front of the sessions: bounded, and fair to who asks seldom."""

from __future__ import annotations

import threading

import pytest

from lvlm_runtime.serve.line import FairLine, LineFullError


def test_clients_take_turns() -> None:
    line: FairLine[str] = FairLine(10)
    for name in ("a1", "a2", "a3", "b1", "c1", "c2"):
        line.put(name[0], name)
    assert [line.take() for _ in range(len(line))] == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_full_line_refuses_who_fills_it_and_makes_room_for_others() -> None:
    line: FairLine[str] = FairLine(3)
    for name in ("a1", "a2", "a3"):
        assert line.put("a", name) is None
    with pytest.raises(LineFullError):
        line.put("a", "a4")
    assert line.put("b", "b1") == "a3"
    # Now a has two and b one: one more of b would be no fairer.
    with pytest.raises(LineFullError):
        line.put("b", "b2")
    assert len(line) == 3


def test_who_leaves_gives_its_place() -> None:
    line: FairLine[str] = FairLine(1)
    line.put("a", "a1")
    assert line.leave("a", "a1")
    assert not line.leave("a", "a1")
    assert not line.leave("b", "a1")
    line.put("b", "b1")
    assert line.take() == "b1"


def test_a_closed_line_gives_what_waits_and_then_nothing() -> None:
    line: FairLine[str] = FairLine(2)
    line.put("a", "a1")
    line.close()
    assert (line.take(), line.take()) == ("a1", None)


def test_taking_waits() -> None:
    line: FairLine[str] = FairLine(2)
    taken: list[str | None] = []
    thread = threading.Thread(target=lambda: taken.append(line.take()))
    thread.start()
    assert taken == []
    line.put("a", "a1")
    thread.join()
    assert taken == ["a1"]
