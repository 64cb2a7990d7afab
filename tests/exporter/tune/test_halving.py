"""Successive halving: what goes on, what is kept, what is chosen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lvlm_export.tune.halving import Standing, beats, choose, front_ranks, make_rungs, survivors

SETTINGS = st.tuples(
    st.integers(1, 500), st.integers(1, 20), st.integers(1, 200), st.integers(1, 3000)
)


@given(SETTINGS)
def test_rungs_halve_and_end_with_all_questions(settings: tuple[int, int, int, int]) -> None:
    trials, finalists, first, questions = settings
    rungs = make_rungs(trials, finalists, first, questions)
    counts = [rung.trials for rung in rungs]
    asked = [rung.questions for rung in rungs]
    assert counts[0] == trials
    assert counts[-1] == min(trials, finalists)
    assert asked[-1] == questions
    assert asked == sorted(asked)
    assert all(2 * after >= before > after for before, after in zip(counts, counts[1:]))  # noqa: B905, RUF007


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_a_front_is_beaten_by_nobody_behind_it(points: list[tuple[int, int]]) -> None:
    named = {str(number): (float(x), float(y)) for number, (x, y) in enumerate(points)}
    ranks = front_ranks(named)
    assert set(ranks) == set(named)
    for name, point in named.items():
        ahead = [ranks[other] for other, place in named.items() if beats(place, point)]
        assert ranks[name] == (1 + max(ahead) if ahead else 0)


def standing(name: str, cost: float, right: int, kept: bool = False) -> Standing:
    return Standing(name, cost, tuple(number < right for number in range(100)), kept)


def test_what_is_too_dear_to_be_chosen_has_a_quarter_of_the_places() -> None:
    dear = [standing(f"dear {n}", 0.6 + n / 100, 80 + n) for n in range(8)]
    near = [standing(f"near {n}", 0.2 + n / 100, 50 + n) for n in range(8)]
    single = standing("single", 0.5, 60, kept=True)
    gone_on = survivors([*dear, single, *near], 9, UNREDUCED, None, 0.5)
    assert gone_on == ("dear 6", "dear 7", "single", *(f"near {n}" for n in range(2, 8)))
    # Places that nobody else can have are theirs.
    gone_on = survivors([*dear, single, *near[:1]], 5, UNREDUCED, None, 0.5)
    assert gone_on == ("dear 5", "dear 6", "dear 7", "single", "near 0")


UNREDUCED = (True,) * 95 + (False,) * 5


def test_the_front_goes_on_and_what_is_kept_too() -> None:
    field = [
        standing("dear", 0.9, 80),
        standing("good", 0.5, 94),
        standing("cheap", 0.2, 70),
        standing("kept", 0.9, 10, kept=True),
    ]
    assert survivors(field, 3, UNREDUCED, None) == ("good", "cheap", "kept")
    # 70 of 100 has surely lost more than five points.
    assert survivors(field, 3, UNREDUCED, 0.05) == ("good", "kept")


def test_the_goal_chooses() -> None:
    field = [standing("best", 0.8, 95), standing("near", 0.4, 93), standing("cheap", 0.2, 80)]
    names = {
        (None, None): "best",
        (0.5, None): "near",
        (None, 0.03): "near",
        (0.3, None): "cheap",
        (None, 0.5): "cheap",
    }
    for (most, within), name in names.items():
        chosen = choose(field, UNREDUCED, most, within)
        assert chosen is not None
        assert chosen.name == name
    assert choose(field, UNREDUCED, 0.3, 0.01) is None


def test_of_the_hardly_less_accurate_the_cheapest_is_chosen() -> None:
    """Two answers lost and one won are less than a standard error, four lost are two of them."""
    near = Standing("near", 0.4, tuple(1 < number < 96 for number in range(100)))
    field = [standing("best", 0.5, 95), near, standing("far", 0.3, 91)]
    chosen = choose(field, UNREDUCED, None, None, thrifty=True)
    assert chosen is not None
    assert chosen.name == "near"
    assert choose(field[:1] + field[2:], UNREDUCED, None, None, thrifty=True) == field[0]
    assert choose(field, UNREDUCED, 0.1, None, thrifty=True) is None
