"""What the README says of the search on the demo comes from its result."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from lvlm_export.demo.train import tuned
from tuning import LEFT, REFUTED, RESULT


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tuned, "RESULT", tmp_path / "tuned.json")
    return tmp_path


def test_finalists_are_kept_and_told(kept: Path) -> None:
    (kept / "result.json").write_text(json.dumps(asdict(RESULT)))
    tuned.main([str(kept / "result.json")])
    text = tuned.as_markdown()
    lines = text.splitlines()
    assert lines[2].startswith("| **`local+fastv 0.33 share 0.85`** | 0.38 | 93.0% |")
    assert lines[-3].startswith("| `none 1` | 1.00 | 95.0% | +0.0 (0 lost, 0 won) |")
    assert LEFT.name not in text
    assert "4 trials on 100 questions" in text
    assert "is +1.0 points (95 % " in text
    assert "to it at 0.95 of its cost" in text
    assert text.endswith("2 cores of Some Processor, PyTorch 2.13.0.")


def test_what_was_refuted_is_told(kept: Path) -> None:
    (kept / "result.json").write_text(json.dumps(asdict(REFUTED)))
    tuned.main([str(kept / "result.json")])
    text = tuned.as_markdown()
    assert "method at 0.33, `local 0.33`, and that is what was found: `local+fastv 0.33" in text
    assert "was better by the first half, and is -2.0 points" in text
