"""What changed between two reports, and which limits it breaks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lvlm_profiles.errors import UsageError
from lvlm_profiles.report import Report
from lvlm_profiles.report.compare import (
    BETTER,
    NOISE,
    UNKNOWN,
    WORSE,
    broken_limits,
    compare_reports,
    differences,
    is_notable,
    other_changes,
    parse_limit,
)
from lvlm_profiles.report.figures import Accuracy
from reports import MODEL, TTFT, make_report, metric


def scaled(factor: float) -> Report:
    return make_report({ratio: [v * factor for v in samples] for ratio, samples in TTFT.items()})


def verdict(before: Report, after: Report, label: str) -> str:
    return next(each.verdict for each in compare_reports(before, after) if each.label == label)


def test_the_same_report_has_changed_nothing() -> None:
    verdicts = {change.verdict for change in compare_reports(make_report(), make_report())}
    assert verdicts == {NOISE, UNKNOWN}


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(1.2, WORSE), (0.8, BETTER), (1.015, NOISE), (1.0, NOISE)],
)
def test_a_change_counts_when_it_is_clear_and_above_two_percent(
    factor: float, expected: str
) -> None:
    assert verdict(make_report(), scaled(factor), "ttft_ms@0.33") == expected
    assert verdict(make_report(), scaled(factor), "vision/vision.0@1") == expected


def test_a_change_inside_the_scatter_is_noise() -> None:
    wide = {1.0: (100.0, 150.0, 80.0, 130.0, 95.0, 120.0)}
    other = {1.0: (110.0, 160.0, 85.0, 140.0, 100.0, 125.0)}
    [found] = [
        each
        for each in compare_reports(make_report(wide), make_report(other))
        if each.metric == "ttft_ms"
    ]
    assert found.change > 0.04
    assert found.low is not None
    assert found.low < 0
    assert found.verdict == NOISE


def test_of_some_metrics_more_is_better() -> None:
    fast = make_report()
    [one, two] = fast.budgets
    faster = replace(fast, budgets=(replace(one, tokens_per_s=metric([300.0] * 6)), two))
    assert verdict(fast, faster, "tokens_per_s@1") == BETTER
    assert verdict(faster, fast, "tokens_per_s@1") == WORSE


def test_few_samples_give_no_interval() -> None:
    few = make_report({1.0: (100.0, 101.0)})
    [found] = [each for each in compare_reports(few, few) if each.metric == "ttft_ms"]
    assert (found.low, found.verdict) == (None, UNKNOWN)


def test_known_change_of_a_median() -> None:
    [found] = [
        each for each in compare_reports(make_report(), scaled(1.1)) if each.label == "ttft_ms@1"
    ]
    assert (found.before, found.after) == (pytest.approx(200.5), pytest.approx(220.55))
    assert found.change == pytest.approx(0.1)


def test_only_ratios_of_both_are_compared() -> None:
    other = make_report({1.0: TTFT[1.0], 0.5: TTFT[1.0]})
    ratios = {each.ratio for each in compare_reports(make_report(), other)}
    assert ratios == {None, 1.0}


@pytest.mark.parametrize(
    ("text", "metric_name", "ratio", "bound", "relative"),
    [
        ("ttft_ms:+5%", "ttft_ms", None, 0.05, True),
        ("tokens_per_s@0.33:-3%", "tokens_per_s", 0.33, -0.03, True),
        ("peak_bytes:+20000000", "peak_bytes", None, 2e7, False),
        ("vision/vision.0:+2.5%", "vision/vision.0", None, 0.025, True),
        ("vision/vision@2@1:+1", "vision/vision@2", 1.0, 1.0, False),
        ("ttft_ms@.5:+0%", "ttft_ms", 0.5, 0.0, True),
    ],
)
def test_limits_that_can_be_read(
    text: str, metric_name: str, ratio: float | None, bound: float, relative: bool
) -> None:
    found = parse_limit(text)
    assert (found.metric, found.ratio, found.relative) == (metric_name, ratio, relative)
    assert found.bound == pytest.approx(bound)


@pytest.mark.parametrize("text", ["ttft_ms", "ttft_ms:5%", ":+5%", "ttft_ms:+x%", "a b:+1", ""])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a limit; write METRIC\[@RATIO\]:\+5%"):
        parse_limit(text)


@pytest.mark.parametrize(
    ("factor", "limit", "labels"),
    [
        (1.1, "ttft_ms:+5%", ["ttft_ms@1", "ttft_ms@0.33"]),
        (1.1, "ttft_ms@1:+5%", ["ttft_ms@1"]),
        (1.1, "ttft_ms:+15%", []),
        (1.1, "ttft_ms@1:+15", ["ttft_ms@1"]),
        (0.9, "ttft_ms:+5%", []),
        (0.9, "ttft_ms:-5%", ["ttft_ms@1", "ttft_ms@0.33"]),
        (1.015, "ttft_ms:+0%", []),
    ],
)
def test_a_limit_breaks_on_a_clear_change_beyond_it(
    factor: float, limit: str, labels: list[str]
) -> None:
    changes = compare_reports(make_report(), scaled(factor))
    assert [change.label for _, change in broken_limits(changes, [parse_limit(limit)])] == labels


def test_a_value_without_interval_breaks_a_limit_by_itself() -> None:
    [one, two] = make_report().budgets
    low = Accuracy(400, 300, 0.75, 0.7, 0.79)
    high = Accuracy(400, 360, 0.90, 0.87, 0.93)
    before = make_report(budgets=(replace(one, accuracy=high), two))
    after = make_report(budgets=(replace(one, accuracy=low), two))
    assert len(broken_limits(compare_reports(before, after), [parse_limit("accuracy:-5%")])) == 1
    assert broken_limits(compare_reports(before, after), [parse_limit("accuracy:-20%")]) == []


def test_a_limit_on_something_unknown_names_what_there_is() -> None:
    changes = compare_reports(make_report(), make_report())
    with pytest.raises(
        UsageError,
        match=r"--fail-if joules_per_request:\+1%: both reports have only load_ms, ttft_ms",
    ):
        broken_limits(changes, [parse_limit("joules_per_request:+1%")])


def test_reports_of_another_model_machine_or_request_do_not_compare() -> None:
    report = make_report()
    assert differences(report, report) == []
    other_model = replace(report, model=replace(MODEL, name="big", checkpoint_key="0" * 64))
    assert differences(report, other_model) == [
        "the checkpoint (dddddddddddd and 000000000000)",
        "the model (demo and big)",
    ]
    longer = replace(report, request=replace(report.request, answer_tokens=64))
    assert differences(report, longer) == ["the answer's length (32 and 64)"]
    elsewhere = replace(report, machine=replace(report.machine, fingerprint="f" * 12))
    assert differences(report, elsewhere)[0].startswith(
        "the machine (Some CPU 0123456789ab, cpu and"
    )


def test_what_else_changed_is_told() -> None:
    report = make_report()
    machine = replace(report.machine, libraries={"onnxruntime": "1.32"}, power_mode="15W")
    changes = other_changes(report, replace(report, machine=machine))
    assert changes == ["power mode none → 15W", "onnxruntime 1.31 → 1.32"]


def test_a_stage_matters_when_it_changed_clearly_and_by_a_part_of_the_whole() -> None:
    changes = compare_reports(make_report(), scaled(1.1))
    shown = {change.metric for change in changes if is_notable(change, changes)}
    assert "vision/vision.0" in shown, "5.5 % of the first token's time"
    assert "vision/vision@2" not in shown, "0.5 % of it"
    assert "decode/decoder.0" not in shown, "it has not changed"
    assert {"ttft_ms", "tpot_ms", "load_ms"} <= shown, "metrics always are"
