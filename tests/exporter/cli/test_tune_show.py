"""What a search says at its end."""

from __future__ import annotations

from dataclasses import replace

from lvlm_export.cli.tune_show import cells, verdict
from tuning import DEAR, LEFT, REFUTED, RESULT, SINGLE


def test_the_chosen_is_compared_with_the_best_single_method() -> None:
    best, held, compared, after = verdict(RESULT)
    assert best == "best      local+fastv 0.33 share 0.85, cost 0.380"
    assert held.startswith("held out  -2.0 points (95 % ")
    assert compared.startswith("compared  +1.0 points (95 % ")
    assert compared.endswith("to the best single method at ratio 0.33, local 0.33, cost 0.400")
    assert after.startswith("next best local 0.33, cost 0.400; the best is +1.0 points (95 % ")


def test_what_was_refuted_is_said() -> None:
    lines = list(verdict(REFUTED))
    assert lines[0] == "best      local 0.33, cost 0.400"
    assert lines[2].startswith(
        "refuted   local+fastv 0.33 share 0.85 was the best of the search half; held out, -2.0 points"
    )
    assert lines[2].endswith("to local 0.33, which is chosen in its place")


def test_the_best_single_method_itself_and_none_at_all() -> None:
    same = replace(RESULT, chosen=SINGLE.name)
    assert "compared  it is the best single method at ratio 0.33" in verdict(same)
    alone = replace(RESULT, single=None, against_single=None, next_best=None, against_next=None)
    assert list(verdict(alone))[-1] == (
        "compared  with no single method: none at ratio 0.33 is among the trials"
    )


def test_a_row_has_times_where_there_are_some() -> None:
    assert cells(LEFT, RESULT) == ["random 0.33", "0.450", "-", "75.0%", "-", "", "-", "-", ""]
    timed = replace(RESULT, unit="ms")
    assert cells(replace(DEAR, cost=12.34, measured_ms=9.87), timed)[1:3] == ["12.3 ms", "9.87"]
