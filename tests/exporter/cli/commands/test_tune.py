"""``lvlm-export tune`` as a user types it, on a very small space."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from command_line import error_line, typed
from lvlm_export.plan.recipe import read_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llava(tmp_path_factory.mktemp("llava") / "model", tower="siglip")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight questions about four pictures."""
    directory = tmp_path_factory.mktemp("data")
    lines = []
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(directory / f"{number}.png")
        lines += [
            json.dumps({"image": f"{number}.png", "question": question, "answer": "red"})
            for question in ("What?", "Which color?")
        ]
    path = directory / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_search_from_the_command_line(folder: Path, data: Path, tmp_path: Path) -> None:
    base = ("tune", "--model", folder, "--data", data, "--ratio", "0.5", "-o", tmp_path / "out")
    command = (*base, "--method", "tome", "--method", "fastv", "--first", "2", "--finalists", "2")
    done = typed(*command)
    assert done.exit_code == 0, done.stderr
    assert "questions 8: 4 to choose by, 4 held out" in done.stderr
    assert "best      " in done.stdout
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    recipe = read_recipe(tmp_path / "out" / "recipe.toml", ("method", "ratios", "sites", "seed"))
    chosen = next(each for each in result["trials"] if each["name"] == result["chosen"])
    assert recipe.flags["method"] == chosen["method"]
    assert result["steps"][-1] == {"questions": 4, "trials": 2}
    assert sum(each["held_out"] is not None for each in result["trials"]) == 2
    assert 'data-chart="front"' in (tmp_path / "out" / "report.html").read_text()
    # Nothing is asked again, and the result is the same.
    again = typed(*command, "--json")
    assert again.exit_code == 0, again.stderr
    assert "1 of" not in again.stderr
    assert json.loads(again.stdout) == result
    line = error_line(typed(*command, "--seed", "1"), 1)
    assert "is of a search with another set of questions" in line
    (tmp_path / "out" / "state.json").write_text("{}")
    assert "state.json" in error_line(typed(*command), 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ttft", "300ms"), "--ttft needs --device"),
        (("--precision", "fp16"), "--precision needs --device"),
        (("--ratio", "1"), "ratio 1 is the unreduced model"),
        (("--method", "none", "--questions", "20"), "method none is the unreduced model"),
        (("--within", "x"), "'x' is no number of points; write 1% or 0.5%"),
        (("--method", "image_text", "--questions", "20"), "no trial fits this model; the first"),
        (("--device", "x86_cpu", "--questions", "20"), "leave --device out to count FLOPs"),
        (
            ("--device", "agx_orin_64gb", "--ttft", "0.0001ms", "--questions", "20"),
            "trials is estimated at 0.0001 ms or less; the quickest is",
        ),
        (("--questions", "2"), "a search needs questions about two pictures or more"),
    ],
)
def test_what_cannot_be_searched(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert said in error_line(typed("tune", *words, "-o", tmp_path / "out"), 2)
    assert not (tmp_path / "out").exists()


def test_only_the_demo_has_questions_of_its_own(folder: Path, tmp_path: Path) -> None:
    command = ("tune", "--model", folder, "-o", tmp_path / "out")
    assert "--data is missing; only the demo model has" in error_line(typed(*command), 2)


def test_files_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('method = "tome"\n')
    line = error_line(typed("tune", "-o", tmp_path), 1)
    assert "recipe.toml is there and was not written by this command" in line


def test_ray_is_an_extra(
    folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ("tune", "--model", folder, "--data", data, "--ray", "-o", tmp_path / "out")
    assert "--ray needs Ray, which is not installed" in error_line(typed(*command), 1)
