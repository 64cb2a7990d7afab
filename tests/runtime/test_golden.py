"""Golden answers: the build keeps them, and a device without PyTorch compares with them."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from command_line import typed
from lvlm_runtime.bundle.bundle import MANIFEST, Bundle, manifest_text
from lvlm_runtime.golden import FILE, compare_golden, read_golden
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
