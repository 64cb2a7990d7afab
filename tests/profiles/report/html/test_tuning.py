"""The page of a search: the front as a picture, and the finalists."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

pytest.importorskip("jinja2")

from lvlm_profiles.report.html.curves import HEIGHT
from lvlm_profiles.report.html.tuning import front_curve, tuning_page
from tuning import DEAR, LEFT, PAIR, RESULT, SINGLE


def test_every_trial_is_a_dot_and_the_front_a_line() -> None:
    curve = front_curve(RESULT)
    assert len(curve.points) == 5
    assert all(0 <= point.x <= 100 and 0 <= point.y <= HEIGHT for point in curve.points)
    # Down is more: the upper end of an interval has the smaller number.
    assert all(point.high <= point.y <= point.low for point in curve.points)
    named = {point.text for point in curve.points if point.text}
    assert named == {PAIR.name, "none 1"}
    # ``local`` alone is dearer and less accurate than the pair, so the line passes it by.
    assert len(curve.lines) == 2
    hints = [point.hint for point in curve.points]
    assert f"{LEFT.name}: 75.0 % of 40 questions of the search half at 0.45" in hints
    assert f"{DEAR.name}: 94.0 % of the held-out half at 0.8" in hints


def test_the_page_has_finalists_steps_and_machine() -> None:
    page = tuning_page(RESULT)
    assert 'data-chart="front"' in page
    assert "model/&lt;b&gt;" in page
    assert "<b>" not in page.replace("<body>", "")
    rows = re.findall(r"<tr><th>(.*?)</th>", page)
    assert [row.split(" (")[0] for row in rows if "local" in row] == [PAIR.name, SINGLE.name]
    assert f"{PAIR.name} (chosen)" in rows
    assert "2 cores of Some Processor" in page
    assert "torch 2.13.0" in page
    measured = replace(RESULT, trials=(replace(PAIR, measured_ms=12.345), SINGLE))
    assert "<td>12.35</td>" in tuning_page(measured)


def test_one_trial_is_a_picture_too() -> None:
    curve = front_curve(replace(RESULT, trials=(PAIR,)))
    assert len(curve.points) == 2
