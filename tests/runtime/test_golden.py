"""Golden answers: the build keeps them, and a device without PyTorch compares with them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import pytest

from command_line import typed
from lvlm_runtime.bundle.bundle import MANIFEST, Bundle, manifest_text
from lvlm_runtime.bundle.manifest import FileRef
from lvlm_runtime.golden import FILE, RunnerUp, compare_answer, compare_golden, read_golden
from lvlm_runtime.session import Session


def test_the_build_keeps_what_it_compared(demo_bundle: Path) -> None:
    bundle = Bundle.open(demo_bundle)
    golden = read_golden(bundle)
    assert [each.ratio for each in golden.answers] == [b.ratio for b in bundle.manifest.budgets]
    assert all(each.token_ids for each in golden.answers)
    comparisons = compare_golden(Session.load(bundle, device="cpu"), golden)
    assert [each.first_difference for each in comparisons] == [None] * len(golden.answers)


def test_verify_golden_needs_no_pytorch(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = typed("verify", demo_bundle, "--golden", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "PASS  golden answers, onnxruntime on cpu"


def test_other_tokens_fail_with_their_place(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = read_golden(Bundle.open(demo_bundle))
    first = golden.answers[0]
    changed = dataclasses.replace(first, token_ids=(*first.token_ids, 1))
    other = dataclasses.replace(golden, answers=(changed,))
    monkeypatch.setattr("lvlm_runtime.golden.read_golden", lambda bundle: other)
    result = typed("verify", demo_bundle, "--golden", "--device", "cpu", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert not report["passed"]
    [row] = report["answers"]
    assert (row["equal"], row["first_difference"]) == (False, len(first.token_ids))
    assert report["where"] == "onnxruntime on cpu"
    shown = typed("verify", demo_bundle, "--golden", "--device", "cpu").stdout.splitlines()
    assert shown[0] == f"ratio {changed.ratio:g}: FAIL at token {row['first_difference']}"
    assert shown[-1] == "FAIL  golden answers, onnxruntime on cpu"


def test_the_second_best_token_is_a_near_tie_only_where_it_was_near(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = read_golden(Bundle.open(demo_bundle))
    first = golden.answers[0]
    assert len(first.runners_up) == len(first.token_ids)
    assert all(
        second.token_id != token and second.gap >= 0
        for second, token in zip(first.runners_up, first.token_ids, strict=True)
    )
    second = first.runners_up[0]
    got = (second.token_id, *first.token_ids[1:])
    far = compare_answer(first, got, near=second.gap / 2)
    assert (far.passed, far.first_difference, far.near_tie) == (False, 0, None)
    near = compare_answer(first, got, near=second.gap)
    assert (near.passed, near.first_difference, near.near_tie) == (True, 0, second.gap)
    third = compare_answer(first, (-1, *got[1:]), near=1.0)
    assert not third.passed, "neither the best nor the second"
    assert not compare_answer(first, first.token_ids[:-1], near=1.0).passed, "it ended too early"
    old = dataclasses.replace(first, runners_up=())
    assert not compare_answer(old, got, near=1.0).passed, "an earlier version kept none"

    swapped = dataclasses.replace(
        first,
        token_ids=got,
        runners_up=(RunnerUp(first.token_ids[0], 1e-7), *first.runners_up[1:]),
    )
    other = dataclasses.replace(golden, answers=(swapped,))
    monkeypatch.setattr("lvlm_runtime.golden.read_golden", lambda bundle: other)
    result = typed("verify", demo_bundle, "--golden", "--device", "cpu")
    assert result.exit_code == 0, result.stdout
    assert "0 tokens equal, then a near tie (logits 1.0e-07 of the largest apart)" in result.stdout


def test_golden_answers_of_an_earlier_version_are_read(damaged_bundle: Path) -> None:
    manifest = Bundle.open(damaged_bundle).manifest
    content = json.loads((damaged_bundle / FILE).read_text(encoding="utf-8"))
    for answer in content["answers"]:
        del answer["runners_up"]
    written = json.dumps(content).encode()
    (damaged_bundle / FILE).write_bytes(written)
    ref = FileRef(len(written), hashlib.sha256(written).hexdigest())
    listed = dataclasses.replace(manifest, files={**manifest.files, FILE: ref})
    (damaged_bundle / MANIFEST).write_text(manifest_text(listed), encoding="utf-8")
    golden = read_golden(Bundle.open(damaged_bundle))
    assert [each.runners_up for each in golden.answers] == [()] * len(golden.answers)


def test_what_is_missing_or_too_much_is_one_line(damaged_bundle: Path) -> None:
    wrong = typed("verify", damaged_bundle, "--golden", "--prompt", "x")
    assert wrong.exit_code == 2
    assert "--golden has its own picture and question" in wrong.stderr
    bundle = Bundle.open(damaged_bundle)
    files = {name: ref for name, ref in bundle.manifest.files.items() if name != FILE}
    without = dataclasses.replace(bundle.manifest, files=files)
    (damaged_bundle / MANIFEST).write_text(manifest_text(without), encoding="utf-8")
    (damaged_bundle / FILE).unlink()
    result = typed("verify", damaged_bundle, "--golden")
    assert result.exit_code == 1
    line = result.stderr.splitlines()[-1]
    assert line.endswith("has no golden.json; build the bundle again, without --no-verify")
