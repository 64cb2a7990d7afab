"""From options over findings to a report: what is chosen, what is missing, and where it is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from command_line import PICTURE
from lvlm_profiles.missing import Missing
from lvlm_profiles.report import Caution, from_json, to_json
from lvlm_profiles.report.figures import Accuracy, Energy, Sweep
from lvlm_runtime import __version__
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.chain.recorder import Span
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.profile import memory_run
from lvlm_runtime.profile import run as profile_run
from lvlm_runtime.profile.accuracy import EvalResult, read_eval_result
from lvlm_runtime.profile.build_report import build_report
from lvlm_runtime.profile.findings import Findings
from lvlm_runtime.profile.memory_run import Readings
from lvlm_runtime.profile.options import ProfileOptions
from lvlm_runtime.profile.predicted import Cost, predict_costs
from lvlm_runtime.profile.rounds import Measurement, TimedAnswer
from lvlm_runtime.profile.run import collect_findings, profile_bundle
from lvlm_runtime.profile.subject import describe_request
from lvlm_runtime.session import Generation, Session
from reports import MACHINE

RATIOS = (0.33, 1.0)
OPTIONS = ProfileOptions("What?", (PICTURE,), RATIOS, answer_tokens=3, iterations=2, warmup=1)
READINGS = Readings("resident", 1000, 5000, 6000, 200_000_000)
ENERGY = Energy("a meter", "everything", 3, 3.0, 2.0, 0.5, 2.0, 1.0, 50.0)
ACCURACY = Accuracy(200, 180, 0.9, 0.85, 0.93)


@pytest.fixture(scope="module")
def session(demo_bundle: Path) -> Session:
    return Session.open(demo_bundle, "onnxruntime", "cpu", threads=1)


def answer(ttft_ms: float) -> TimedAnswer:
    """Three tokens: half of the first one's time in the vision encoder, 10 ms per further token."""
    spans = (
        Span("vision.0", "vision", ttft_ms / 2, 196, 1),
        Span("decoder.0", "decode", 8.0, 1, 2),
        Span("decoder.0", "decode", 8.0, 1, 3),
    )
    counts = (("vision", 196), ("decoder", 65))
    generation = Generation("", (1, 2, 3), "length", 1.0, counts, 218, ttft_ms, 100.0, 0.0, ())
    return TimedAnswer(generation, spans, ttft_ms + 20)


@pytest.fixture
def findings(session: Session) -> Findings:
    """Everything was measured."""
    request = describe_request(session, OPTIONS)
    return Findings(
        machine=MACHINE,
        request=request,
        load_ms=12.5,
        timings=Measurement(
            samples={0.33: [answer(100.0), answer(102.0)], 1.0: [answer(200.0), answer(204.0)]},
            first={1.0: answer(500.0), 0.33: answer(150.0)},
            warmup_rounds=1,
            checks={ratio: [(101.0, 100.0)] for ratio in RATIOS},
            seconds=3.0,
        ),
        cautions=(Caution("other_load", "others were busy"),),
        energy=dict.fromkeys(RATIOS, ENERGY),
        sweeps=(Sweep("decoder.0", (), None, ()),),
        memory=dict.fromkeys(RATIOS, READINGS),
        costs=predict_costs(session.bundle.manifest, RATIOS, 1.0, request),
        accuracy={1.0: ACCURACY},
    )


def test_a_report_of_everything_misses_nothing(session: Session, findings: Findings) -> None:
    report = build_report(session, OPTIONS, findings)
    assert report.not_measured == {}
    assert report.tool == f"lvlm-export {__version__}"
    assert [budget.ratio for budget in report.budgets] == [1.0, 0.33], "the unreduced one first"
    assert report.reference == 1.0
    assert (report.startup.load_ms, report.startup.cold_ttft_ms) == (12.5, 500.0)
    assert [each.code for each in report.warnings] == ["other_load"]
    assert report.sweeps == findings.sweeps
    whole, reduced = report.budgets
    assert whole.ttft_ms.samples == (200.0, 204.0)
    assert whole.end_to_end_ms.samples == (220.0, 224.0)
    assert whole.energy == ENERGY
    assert (whole.accuracy, reduced.accuracy) == (ACCURACY, None), "0.33 was not evaluated"
    assert whole.memory is not None
    assert whole.memory.peak_bytes == 200_000_000
    assert from_json(json.loads(to_json(report)), "here").budgets[0].ratio == 1.0


def test_what_is_missing_is_null_and_its_reason_is_said_once(
    session: Session, findings: Findings
) -> None:
    gone = {0.33: Missing("the meter stopped"), 1.0: ENERGY}
    poor = replace(
        findings,
        energy=gone,
        memory={0.33: Missing("no probe"), 1.0: Missing("no probe at all")},
        sweeps=Missing("not asked for (--sweep)"),
        costs=Missing("no shapes"),
        accuracy=Missing("no eval result"),
    )
    report = build_report(session, OPTIONS, poor)
    assert report.not_measured == {
        "memory": "no probe",
        "energy": "the meter stopped",
        "accuracy": "no eval result",
        "sweep": "not asked for (--sweep)",
        "predicted": "no shapes",
    }
    whole, reduced = report.budgets
    assert (whole.energy, reduced.energy) == (ENERGY, None)
    for budget in report.budgets:
        assert (budget.memory, budget.accuracy, budget.predicted, budget.path) == (None,) * 4
    assert report.sweeps == ()


def test_a_device_without_rates_has_no_roofline_and_says_so(findings: Findings) -> None:
    assert not isinstance(findings.costs, Missing)
    without = Missing("x86_cpu has no published rate or bandwidth for float32")
    costs = {ratio: replace(cost, roofline_ms=without) for ratio, cost in findings.costs.items()}
    assert replace(findings, costs=costs).not_measured() == {"roofline": without.reason}
    beside: Cost = costs[1.0]
    assert (beside.beside(10.0).roofline_ms, beside.beside(10.0).roofline_share) == (None, None)


def test_findings_are_collected_in_one_go(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the second process: what memory takes is another test's."""
    jobs: list[memory_run.Job] = []

    def no_process(job: memory_run.Job) -> Missing:
        jobs.append(job)
        return Missing("no process")

    monkeypatch.setattr(profile_run, "read_memory", no_process)
    monkeypatch.setattr(profile_run, "find_meter", lambda *_: Missing("no meter"))
    said: list[str] = []
    result = EvalResult(Path("eval.json"), "demo", "illava", {1.0: ACCURACY})
    options = replace(OPTIONS, accuracy=result, threads=1, images=None)
    findings = collect_findings(session, options, 12.5, 0.0, said.append)
    assert findings.not_measured() == {
        "memory": "no process",
        "energy": "no meter",
        "sweep": "not asked for (--sweep)",
    }
    assert findings.accuracy == {1.0: ACCURACY}
    assert said[:3] == ["warming up", "measuring", "checking"]
    assert [(job.ratio, job.images, job.synthetic) for job in jobs] == [(0.33, [], 1), (1.0, [], 1)]
    assert {len(samples) for samples in findings.timings.samples.values()} == {2}


def test_an_eval_result_of_another_bundle_is_known_before_measuring(demo_bundle: Path) -> None:
    other = EvalResult(Path("eval.json"), "big", "fastv", {1.0: ACCURACY})
    options = ProfileOptions(accuracy=other, backend="onnxruntime", device="cpu", threads=1)
    with pytest.raises(
        LvlmError, match=r"eval.json is of big with fastv and the bundle is of demo"
    ):
        profile_bundle(demo_bundle, options, pytest.fail)


def test_an_eval_result_gives_the_rows_over_all_kinds(tmp_path: Path) -> None:
    row = {"questions": 200, "right": 180, "accuracy": 0.9, "low": 0.85, "high": 0.93}
    rows = [
        {**row, "ratio": 1, "kind": "color", "accuracy": 0.1},
        {**row, "ratio": 1, "kind": "all"},
    ]
    path = tmp_path / "eval.json"
    path.write_text(json.dumps({"model": "demo", "method": "illava", "rows": rows}), "utf-8")
    result = read_eval_result(path)
    assert (result.model, result.method, result.rows) == ("demo", "illava", {1.0: ACCURACY})
    with pytest.raises(LvlmError, match="there is no eval result"):
        read_eval_result(tmp_path / "nowhere.json")
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(LvlmError, match=r"is no result of `lvlm-export eval --json` \(KeyError"):
        read_eval_result(path)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_measurement_of_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(UsageError, match=r"--duration .* must be above 0 seconds"):
        ProfileOptions(duration_s=seconds)


def test_rounds_are_limited_by_their_number_or_by_time() -> None:
    with pytest.raises(UsageError, match="--iterations and --duration exclude each other"):
        ProfileOptions(iterations=3, duration_s=1.0)


def test_options_of_a_bundle_name_each_ratio_once(demo_bundle: Path) -> None:
    bundle = Bundle.open(demo_bundle)
    assert ProfileOptions().for_bundle(bundle).ratios == (0.33, 0.5, 1.0)
    twice = ProfileOptions(ratios=(1.0, 0.3300000000001, 0.33))
    assert twice.for_bundle(bundle).ratios == (1.0, 0.33)
    with pytest.raises(UsageError, match=r"ratio 0.4 is not in this bundle"):
        ProfileOptions(ratios=(0.4,)).for_bundle(bundle)


def test_without_files_one_picture_is_made_and_only_once() -> None:
    options = ProfileOptions()
    [picture] = options.pictures
    assert isinstance(picture, np.ndarray)
    assert options.pictures[0] is picture, "nothing is drawn while a request is timed"
    assert ProfileOptions(images=(PICTURE,)).pictures == (PICTURE,)
    assert ProfileOptions(images=()).pictures == (), "a question of text alone"
