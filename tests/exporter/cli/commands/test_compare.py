"""``compare`` as a user types it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from command_line import error_line, typed
from lvlm_profiles.report import write_report
from reports import MACHINE, TTFT, make_report


def saved(path: Path, factor: float = 1.0, **changes: object) -> Path:
    report = make_report({r: [v * factor for v in samples] for r, samples in TTFT.items()})
    write_report(replace(report, **changes), path)  # type: ignore[arg-type]
    return path


def test_compare_shows_what_changed(tmp_path: Path) -> None:
    before, after = saved(tmp_path / "a.json"), saved(tmp_path / "b.json", 1.2)
    result = typed("compare", before, after)
    assert result.exit_code == 0, result.stderr
    rows = {tuple(line.split()[:2]): line for line in result.stdout.splitlines() if line.strip()}
    assert "+20.0%" in rows["ttft_ms", "1"]
    assert rows["ttft_ms", "1"].rstrip().endswith("worse")
    assert rows["tpot_ms", "1"].rstrip().endswith("within noise")
    assert ("vision/vision.0", "0.33") in rows
    assert ("decode/decoder.0", "1") not in rows
    assert "(--all shows them)" in result.stdout
    assert "decode/decoder.0" in typed("compare", before, after, "--all").stdout


def test_compare_writes_large_numbers_out(tmp_path: Path) -> None:
    report = saved(tmp_path / "a.json", 200.0)
    text = typed("compare", report, report).stdout
    assert "40,100" in text, "the median of 200.5 ms, times 200"
    assert "e+" not in text


def test_compare_as_json(tmp_path: Path) -> None:
    before, after = saved(tmp_path / "a.json"), saved(tmp_path / "b.json", 1.2)
    content = json.loads(typed("compare", before, after, "--json").stdout)
    [change] = [c for c in content["changes"] if (c["metric"], c["ratio"]) == ("ttft_ms", 0.33)]
    assert change["change"] == pytest.approx(0.2)
    assert change["verdict"] == "worse"
    assert content["differences"] == content["broken"] == []


def test_a_broken_limit_fails_the_command_after_the_table(tmp_path: Path) -> None:
    before, after = saved(tmp_path / "a.json"), saved(tmp_path / "b.json", 1.2)
    fine = typed("compare", before, after, "--fail-if", "ttft_ms:+25%", "--fail-if", "tpot_ms:+1%")
    assert fine.exit_code == 0
    result = typed("compare", before, after, "--fail-if", "ttft_ms@1:+5%")
    assert result.exit_code == 1
    assert "ttft_ms" in result.stdout
    assert result.stderr.splitlines() == [
        "error: ttft_ms@1 changed by +20.0%, beyond --fail-if ttft_ms@1:+5%"
    ]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--fail-if", "ttft_ms"), 2, "'ttft_ms' is not a limit; write METRIC[@RATIO]:+5%"),
        (("--fail-if", "speed:+5%"), 2, "--fail-if speed:+5%: both reports have only load_ms, "),
    ],
)
def test_limits_that_say_nothing(
    words: tuple[str, ...], status: int, message: str, tmp_path: Path
) -> None:
    before, after = saved(tmp_path / "a.json"), saved(tmp_path / "b.json")
    assert message in error_line(typed("compare", before, after, *words), status)


def test_reports_that_do_not_compare_need_force(tmp_path: Path) -> None:
    before = saved(tmp_path / "a.json")
    after = saved(tmp_path / "b.json", machine=replace(MACHINE, fingerprint="f" * 12))
    line = error_line(typed("compare", before, after), 1)
    assert line.startswith("error: the reports do not compare: they differ in the machine (")
    assert line.endswith("; --force compares them anyway")
    forced = typed("compare", before, after, "--force")
    assert forced.exit_code == 0
    assert forced.stdout.startswith("compared by --force: they differ in the machine (")


def test_what_is_no_report_is_one_line(tmp_path: Path) -> None:
    good = saved(tmp_path / "a.json")
    assert "there is no report" in error_line(typed("compare", good, tmp_path / "b.json"), 1)
    other = saved(tmp_path / "c.json", budgets=())
    assert "no ratio in common" in error_line(
        typed("compare", other, saved(tmp_path / "d.json", budgets=())), 1
    )
