"""``report.json``: a round trip, and every way in which a file is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lvlm_profiles.errors import LvlmError
from lvlm_profiles.report import from_json, load_report, to_json, write_report
from reports import full_report, make_report


@pytest.mark.parametrize("make", [make_report, full_report])
def test_a_report_reads_back_as_it_was_written(make: object, tmp_path: Path) -> None:
    report = make()  # type: ignore[operator]
    write_report(report, tmp_path / "report.json")
    again = load_report(tmp_path / "report.json")
    assert to_json(again) == to_json(report)
    assert load_report(tmp_path) == again, "a directory stands for the report in it"
    assert again.budgets[0].ttft_ms.samples == report.budgets[0].ttft_ms.samples
    assert list(tmp_path.iterdir()) == [tmp_path / "report.json"], "no half-written file is left"


def test_large_and_small_numbers_keep_their_digits() -> None:
    report = make_report({1.0: (123456.78949, 0.000123456789)})
    samples = json.loads(to_json(report))["budgets"][0]["ttft_ms"]["samples"]
    assert samples == [123456.7895, 0.000123457]


def content(**changes: object) -> dict[str, object]:
    return {**json.loads(to_json(make_report())), **changes}


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ([], "x is no report of `lvlm-export profile`"),
        (content(kind="eval"), "x is no report of `lvlm-export profile`"),
        (content(schema=2), "x has schema 2 and this version reads 1; write it again with `lvlm-"),
        (
            content(reference="1"),
            r"^x, reference: expected a number, got '1'; write it again with `lvlm-export profile -o`$",
        ),
        (content(more=1), r"x: expected exactly the known entries, got unknown 'more'; write it"),
        (content(budgets={}), r"x, budgets: expected a list, got \{\}; write it again"),
        (content(tool=None), r"x, tool: expected str, got None"),
        (content(not_measured=[]), r"x, not_measured: expected an object"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(damaged: object, message: str) -> None:
    with pytest.raises(LvlmError, match=message) as caught:
        from_json(damaged, "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ("ttft_ms", r"budgets\[0\]\.ttft_ms\.samples"),
        ("stages", r"budgets\[0\]\.stages\[0\]\.samples_ms"),
        ("wall_check", r"budgets\[0\]\.wall_check\.stopwatch_ms"),
    ],
)
def test_figures_without_a_sample_are_refused(entry: str, place: str) -> None:
    damaged = json.loads(to_json(full_report()))
    figures = damaged["budgets"][0][entry]
    figures = figures[0] if entry == "stages" else figures
    name = place.rpartition(".")[2]
    assert figures[name], "the report has samples there"
    figures[name] = []
    with pytest.raises(LvlmError, match=rf"^x, {place}: expected one number or more, got none; "):
        from_json(damaged, "x")


def test_a_missing_and_a_broken_file(tmp_path: Path) -> None:
    with pytest.raises(LvlmError, match=r"there is no report .*; `lvlm-export profile -o` writes"):
        load_report(tmp_path / "report.json")
    (tmp_path / "report.json").write_text("{", encoding="utf-8")
    with pytest.raises(
        LvlmError,
        match=r"report\.json is damaged: it is no JSON .*; write it again with `lvlm-export",
    ):
        load_report(tmp_path)


def test_a_budget_is_found_by_its_ratio() -> None:
    report = make_report()
    found = report.budget(0.33)
    assert found is not None
    assert found.ratio == 0.33
    assert report.budget(0.4) is None
