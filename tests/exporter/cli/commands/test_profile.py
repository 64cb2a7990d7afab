"""``profile`` and ``run --ttft`` as a user types them."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from command_line import PICTURE, QUESTION, error_line, typed
from loading import EXPORT, HEAVY, loaded
from lvlm_profiles.devices.machine import fingerprint
from lvlm_profiles.report import load_report
from lvlm_runtime.bundle.bundle import read_manifest
from lvlm_runtime.profiled import keep_report
from reports import MACHINE, TTFT, make_report

SHORT = ("--iterations", "5", "--warmup", "1", "--answer-tokens", "4")


@pytest.fixture(scope="module")
def profiled(
    demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, Path, Path]:
    """A profile of the demo bundle: what was printed, the report's directory, the user's state."""
    folder = tmp_path_factory.mktemp("profile")
    results = folder / "eval.json"
    manifest = read_manifest(demo_bundle)
    row = {
        "kind": "all",
        "questions": 200,
        "right": 180,
        "accuracy": 0.9,
        "low": 0.85,
        "high": 0.93,
    }
    rows = [{**row, "ratio": ratio} for ratio in (0.33, 1.0)]
    rows.append({**row, "ratio": 1.0, "kind": "color", "accuracy": 0.1})
    content = {"model": manifest.model, "method": manifest.method, "rows": rows}
    results.write_text(json.dumps(content), encoding="utf-8")
    ratios = ("--ratio", "0.33", "--ratio", "1")
    given = ("--image", PICTURE, "--prompt", QUESTION, "--sweep", "--accuracy", results)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        result = typed("profile", demo_bundle, *ratios, *given, *SHORT, "-o", folder / "report")
    assert result.exit_code == 0, result.stderr
    return result, folder / "report", folder / "state"


def test_a_profile_prints_one_table_and_where_it_was_written(
    profiled: tuple[Result, Path, Path], demo_bundle: Path
) -> None:
    result, directory, state = profiled
    lines = result.stdout.splitlines()
    assert lines[0].startswith("model     demo, illava, float32 for cpu")
    assert any("5 interleaved rounds after 1 of warm-up" in line for line in lines)
    rows = [
        line.split()
        for line in lines
        if len(line.split()) > 12 and line.split()[0] in ("1", "0.33")
    ]
    tokens = [row[1] for row in rows]
    assert tokens == ["196", "65"], "the unreduced budget first"
    assert rows[0][4:6] == ["1.00x", "1.00x"], "speed-ups are counted from it"
    assert rows[0][-2:] == ["90.0", "%"]
    assert any(line.startswith("latency of decoder.0 over tokens ") for line in lines)
    assert (
        any(line.startswith("energy: not measured, ") for line in lines) or "RAPL" in result.stdout
    )
    assert f"report    {directory / 'report.html'}, report.md and report.json" in lines
    assert lines[-1].startswith(f"kept      {state}")
    assert sorted(path.name for path in directory.iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]


def test_the_report_holds_raw_samples_and_adds_up(
    profiled: tuple[Result, Path, Path], demo_bundle: Path
) -> None:
    report = load_report(profiled[1])
    manifest = read_manifest(demo_bundle)
    assert report.model.content_key == manifest.content_key
    assert report.model.graphs["vision.0.onnx"] == manifest.files["vision.0.onnx"].sha256
    assert report.reference == 1.0
    assert [each.name for each in report.request.images] == ["scene_0.png"]
    assert (report.request.tiles, report.request.answer_tokens) == (1, 4)
    assert [sweep.stage for sweep in report.sweeps][-2:] == ["decoder.1", "decoder.2"]
    unreduced = report.budget(1.0)
    assert unreduced is not None
    for budget in report.budgets:
        assert budget.ttft_ms.summary.n == len(budget.ttft_ms.samples) == 5
        for number, whole in enumerate(budget.ttft_ms.samples):
            parts = [s.samples_ms[number] for s in budget.stages if s.phase != "decode"]
            assert sum(parts) == pytest.approx(whole, abs=0.01)
        # What a request takes beside its graphs is the same time at every ratio.
        check = budget.wall_check
        beside = abs(check.difference) * statistics.median(check.reported_ms)
        assert beside < 0.02 * statistics.median(unreduced.wall_check.reported_ms)
        assert budget.prompt_tokens == report.request.text_tokens + budget.visual_tokens[
            -1
        ].tokens or (budget.ratio < 1)
    reduced = report.budget(0.33)
    assert reduced is not None
    assert reduced.predicted is not None
    assert 1.5 < reduced.predicted.speedup < 3.5
    assert reduced.accuracy is not None
    assert reduced.accuracy.accuracy == 0.9, "of all kinds together"


def test_memory_is_split_without_a_rest(profiled: tuple[Result, Path, Path]) -> None:
    for budget in load_report(profiled[1]).budgets:
        memory = budget.memory
        assert memory is not None
        assert memory.kind == "resident"
        parts = memory.process_bytes + memory.weights_bytes + memory.kv_cache_bytes
        assert parts + memory.activations_bytes == memory.peak_bytes
        assert 10e6 < memory.weights_bytes < 100e6
        assert memory.peak_bytes > memory.process_bytes > 20e6


def test_key_value_memory_is_what_the_chain_allocates(profiled: tuple[Result, Path, Path]) -> None:
    report = load_report(profiled[1])
    text, answer = report.request.text_tokens, report.request.answer_tokens
    found = {each.ratio: each.memory.kv_cache_bytes for each in report.budgets if each.memory}
    row = 2 * 2 * 32 * 4  # keys and values, two heads of 32, float32
    assert found[1.0] == row * 6 * (text + 196 + answer)
    assert found[0.33] == row * (
        4 * (text + 100 + answer) + (text + 81 + answer) + (text + 65 + answer)
    )


def test_run_takes_its_ratio_from_the_last_profile(
    profiled: tuple[Result, Path, Path], demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(profiled[2]))
    words = ("run", demo_bundle, "--image", PICTURE, QUESTION)
    result = typed(*words, "--ttft", "60s")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[0].startswith("ratio 1;")
    assert result.stderr.splitlines()[1].startswith("--ttft 60000 ms took ratio 1: ")
    content = json.loads(typed(*words, "--ttft", "60s", "--json").stdout)
    assert content["ratio"] == 1.0
    assert content["ttft"]["target_ms"] == 60000.0
    assert 0 < content["ttft"]["expected_ms"] < 60000.0
    line = error_line(typed(*words, "--ttft", "60s", "--threads", "1"), 1)
    assert "with onnxruntime on cpu, --threads 1; type" in line
    line = error_line(typed(*words, "--ttft", "0.001ms"), 1)
    assert "no ratio of this bundle meets 0.001 ms: the fastest is " in line
    line = error_line(typed(*words, "--image", PICTURE, "--ttft", "60s"), 1)
    assert "requests of 1 picture(s) and this one has 2" in line


def test_run_without_a_profile_says_to_make_one(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    line = error_line(typed("run", demo_bundle, "--image", PICTURE, QUESTION, "--ttft", "300ms"), 1)
    assert f"type `lvlm-export profile {demo_bundle}` first, or give --ratio" in line


def test_a_longer_prompt_than_the_profiled_one_is_told(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    manifest = read_manifest(demo_bundle)
    report = make_report({1.0: TTFT[1.0]}, machine=replace(MACHINE, fingerprint=fingerprint()))
    [budget] = report.budgets
    short = replace(
        report,
        model=replace(report.model, content_key=manifest.content_key),
        budgets=(replace(budget, prompt_tokens=10),),
    )
    keep_report(short)
    result = typed(
        "run", demo_bundle, "--image", PICTURE, QUESTION, "--ttft", "60s", "--device", "cpu"
    )
    assert result.exit_code == 0, result.stderr
    assert "tokens and the profiled one had 10" in result.stderr.splitlines()[1]


def test_without_a_picture_one_is_made(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    result = typed("profile", demo_bundle, "--ratio", "0.33", *SHORT, "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    [image] = content["request"]["images"]
    assert (image["name"], image["sha256"]) == ("made for the profile, 640x480", None)
    assert content["reference"] == 0.33
    assert content["budgets"][0]["memory"]["peak_bytes"] > 0


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--iterations", "3", "--duration", "1"), 2, "--iterations and --duration exclude each"),
        (("--device-profile", "toaster"), 2, "unknown device 'toaster'; known: agx_orin_32gb"),
        (("--duration", "0"), 2, "--duration 0 must be above 0 seconds"),
        (("--iterations", "0"), 2, "0 is not in the range"),
        (("--ratio", "0.4"), 2, "ratio 0.4 is not in this bundle; it has 0.33, 0.5, 1"),
        (("--accuracy", "nowhere.json"), 1, "there is no eval result nowhere.json"),
        (("--image", "nowhere.png"), 1, "nowhere.png"),
        (("--answer-tokens", "5000"), 1, "the prompt does not fit"),
    ],
)
def test_a_profile_that_cannot_be_made(
    words: tuple[str, ...], status: int, message: str, demo_bundle: Path
) -> None:
    assert message in error_line(typed("profile", demo_bundle, *words), status)


def test_a_report_that_cannot_be_written_is_known_before_measuring(
    demo_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "report"
    file.write_text("", encoding="utf-8")
    line = error_line(typed("profile", demo_bundle, "-o", file), 2)
    assert line == f"error: --output {file} is a file; name a directory"


def test_a_profile_that_cannot_be_kept_is_not_lost(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_STATE_HOME", str(file))
    result = typed("profile", demo_bundle, "--ratio", "0.33", *SHORT, "-o", tmp_path / "report")
    assert result.exit_code == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith("kept      nowhere, `run --ttft` will not know this profile: ")
    assert load_report(tmp_path / "report").budgets


def test_a_profile_of_few_rounds_is_not_gone_by(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    few = ("--iterations", "1", "--warmup", "0", "--answer-tokens", "1")
    result = typed("profile", demo_bundle, "--ratio", "0.33", *few)
    assert result.exit_code == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert last == "kept      nowhere: `run --ttft` goes by profiles of at least 5 rounds"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no result of `lvlm-export eval --json`"),
        ("{}", "is no result of `lvlm-export eval --json` (KeyError: 'rows')"),
        (
            '{"model": "big", "method": "fastv", "rows": [{"kind": "a", "ratio": 1, "questions": 1,'
            ' "right": 1, "accuracy": 1.0, "low": 0.1, "high": 1.0}]}',
            "is of big with fastv and the bundle is of demo with illava",
        ),
    ],
)
def test_an_accuracy_that_is_not_the_bundles(
    content: str, message: str, demo_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "eval.json"
    file.write_text(content, encoding="utf-8")
    assert message in error_line(typed("profile", demo_bundle, "--accuracy", file), 1)


def test_profile_and_compare_import_neither_torch_nor_the_exporter(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    words = ["profile", str(demo_bundle), "--ratio", "0.33", *SHORT, "-o", str(tmp_path / "report")]
    assert loaded(words, (*HEAVY, *EXPORT)) == []
    words = ["compare", str(tmp_path / "report"), str(tmp_path / "report")]
    assert loaded(words, (*HEAVY, *EXPORT, "onnxruntime", "numpy")) == []
