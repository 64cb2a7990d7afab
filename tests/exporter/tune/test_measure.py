"""Finalists as bundles that are measured, and the recipe as a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from command_line import typed
from lvlm_runtime.session import Session
from pictured import write_questions


@pytest.mark.slow
def test_finalists_are_measured_and_the_recipe_is_built(tmp_path: Path) -> None:
    model = tiny.llava(tmp_path / "model", tower="siglip")
    data = write_questions(tmp_path, 4)
    options = ("--ratio", "0.5", "--method", "local", "--method", "tome+fastv", "--finalists", "2")
    command = ("tune", "--model", model, "--data", data, *options, "--max-new-tokens", "4")
    done = typed(*command, "--measure", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    measured = {each["name"]: each["measured_ms"] for each in result["trials"]}
    finalists = {each["name"] for each in result["trials"] if each["held_out"] is not None}
    assert {name for name, ms in measured.items() if ms is not None} == finalists
    assert all(measured[name] > 0 for name in finalists)
    assert result["unreduced"]["measured_ms"] > 0
    assert len(list((tmp_path / "out" / "bundles").iterdir())) == 3
    built = typed(
        "build",
        "--model",
        model,
        "--recipe",
        tmp_path / "out" / "recipe.toml",
        "-o",
        tmp_path / "b",
    )
    assert built.exit_code == 0, built.stderr
    name = result["chosen"].replace(" ", "_").replace("+", "_").replace("@", "_").replace(",", "_")
    sessions = [
        Session.open(path) for path in (tmp_path / "out" / "bundles" / name, tmp_path / "b")
    ]
    texts = [
        each.generate("What?", [tmp_path / "0.png"], max_new_tokens=4).text for each in sessions
    ]
    assert texts[0] == texts[1]
