"""``lvlm-export tune`` as a user types it, on a very small space."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import tiny
from command_line import error_line, typed
from lvlm_export.plan.recipe import read_recipe
from lvlm_export.tune.asking import Asker, Outcome, PictureQuestions
from lvlm_export.tune.branches import Effort
from lvlm_export.tune.space import TrialPlan
from pictured import write_questions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llava(tmp_path_factory.mktemp("llava") / "model", tower="siglip")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight questions about four pictures."""
    return write_questions(tmp_path_factory.mktemp("data"), 4)


def test_a_search_from_the_command_line(folder: Path, data: Path, tmp_path: Path) -> None:
    base = ("tune", "--model", folder, "--data", data, "--ratio", "0.5", "-o", tmp_path / "out")
    command = (*base, "--method", "tome", "--method", "fastv", "--first", "2", "--finalists", "2")
    done = typed(*command)
    assert done.exit_code == 0, done.stderr
    assert "questions 8: 4 to choose by, 4 held out" in done.stderr
    assert (
        "goal      the most accurate that is no dearer than the best single method" in done.stderr
    )
    # No terminal: a line for every step and every part of it.
    assert "held out: 2 trials: 1 of 1, 4 questions" in done.stderr.splitlines()
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
    assert {**json.loads(again.stdout), "created": result["created"]} == result
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
        (("--against", "0.4"), "--against 0.4 is not among the ratios tried, 0.5, 0.33, 0.2"),
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


def test_a_device_and_a_time(folder: Path, data: Path, tmp_path: Path) -> None:
    """Costs are estimated milliseconds, and the recipe is for that device."""
    base = ("tune", "--model", folder, "--data", data, "--ratio", "0.5", "--method", "tome")
    command = (*base, "--device", "orin_nano_8gb", "--ttft", "300ms", "--max-new-tokens", "2")
    done = typed(*command, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "goal      the most accurate of at most 300 ms" in done.stderr
    assert "costs     ESTIMATED for " in done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["unit"] == "ms"
    assert 0 < result["trials"][0]["cost"] < result["unreduced"]["cost"] < 300
    flags = ("method", "ratios", "sites", "seed", "target", "precision")
    recipe = read_recipe(tmp_path / "out" / "recipe.toml", flags)
    assert recipe.flags["target"] == "orin_nano_8gb"
    assert recipe.flags["precision"] == "fp16"


class Interrupted(Asker):
    """Asks some times, and is then stopped as by Ctrl-C."""

    left = 0

    def ask(self, plans: Sequence[TrialPlan], pictures: Sequence[PictureQuestions]) -> Outcome:
        if not Interrupted.left:
            raise KeyboardInterrupt
        Interrupted.left -= 1
        return super().ask(plans, pictures)


def test_a_search_that_was_stopped_goes_on(
    folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a step, and with the result of one that was not stopped."""
    base = ("tune", "--model", folder, "--data", data, "--ratio", "0.5", "--first", "2", "--json")
    command = (*base, "--method", "tome", "--method", "fastv", "--finalists", "2", "-o")
    whole = typed(*command, tmp_path / "whole")
    assert whole.exit_code == 0, whole.stderr
    monkeypatch.setattr("lvlm_export.tune.search.PICTURES", 1)
    monkeypatch.setattr("lvlm_export.tune.asking.Asker", Interrupted)
    Interrupted.left = 2
    stopped = typed(*command, tmp_path / "out")
    assert stopped.exit_code not in (0, 2)
    assert not (tmp_path / "out" / "recipe.toml").exists()
    Interrupted.left = 100
    done = typed(*command, tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert Interrupted.left < 100
    found, expected = json.loads(done.stdout), json.loads(whole.stdout)
    for result in (found, expected):
        del result["effort"], result["processor_seconds"], result["created"]
    assert found == expected
    for name in ("recipe.toml", "state.json"):
        texts = [(tmp_path / each / name).read_text() for each in ("whole", "out")]
        if name == "state.json":
            texts = [json.loads(text)["held"] for text in texts]
        assert texts[0] == texts[1]


class OnlyWhole(Asker):
    """The unreduced model is always right, and no trial is."""

    def ask(self, plans: Sequence[TrialPlan], pictures: Sequence[PictureQuestions]) -> Outcome:
        count = sum(len(each.questions) for each in pictures)
        return Outcome(tuple((plan.trial.ratio == 1,) * count for plan in plans), Effort())


def test_no_trial_meets_the_goal(
    folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvlm_export.tune.asking.Asker", OnlyWhole)
    command = ("tune", "--model", folder, "--data", data, "--ratio", "0.5", "--method", "tome")
    line = error_line(typed(*command, "--within", "1%", "-o", tmp_path / "out"), 1)
    assert line.startswith("error: no trial meets the goal; the nearest is tome 0.5")
    assert "which loses 100.0 points on 4 questions; allow more with --within" in line
    assert not (tmp_path / "out" / "recipe.toml").exists()


def test_a_prompt_that_does_not_fit_is_said_before_anything_is_asked(
    folder: Path, data: Path, tmp_path: Path
) -> None:
    command = ("tune", "--model", folder, "--data", data, "--max-new-tokens", "100000")
    line = error_line(typed(*command, "-o", tmp_path / "out"), 1)
    assert "questions.jsonl:" in line
    assert "does not fit: " in line
    assert "leave the question out, or give a smaller --max-new-tokens" in line
    assert not (tmp_path / "out").exists()


def test_a_trained_projector_leaves_methods_out(data: Path, tmp_path: Path) -> None:
    """It takes every patch of a tile: what reduces before it is left out, and that is said."""
    checkpoint = tiny.projected(tmp_path / "quecc", "quecc", 3)
    base = ("tune", "--model", checkpoint, "--data", data, "--ratio", "0.5")
    command = (*base, "--method", "tome", "--method", "fastv", "--max-new-tokens", "4")
    done = typed(*command, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {each["method"] for each in result["trials"]} == {"fastv"}
    assert result["refused"][0][0] == "tome 0.5"
    assert "left out  tome 0.5: " in done.stderr
    assert "quecc" in done.stderr


@pytest.mark.slow
def test_the_bundle_answers_as_the_search_said(
    tiny_llava: Path, data: Path, tmp_path: Path
) -> None:
    """Half of what the bundle answers is given as the right answer: half of it is right."""
    from lvlm_runtime.session import Session

    lines = [json.loads(line) for line in data.read_text().splitlines()]
    session = Session.open(tiny_llava / "bundle")
    output = tmp_path / "the search"
    command = ("tune", "--model", tiny_llava / "checkpoint", "--images", data.parent)
    options = ("--method", "illava", "--ratio", "0.5", "--max-new-tokens", "4", "-o", output)
    for ratio in (0.5, 1.0):
        for number, line in enumerate(lines):
            picture = data.with_name(line["image"])
            answer = session.generate(line["question"], [picture], ratio, max_new_tokens=4)
            assert answer.text.strip()
            line["answer"] = answer.text if number % 2 else "none of it"
        asked = tmp_path / f"{ratio}.jsonl"
        asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
        shutil.rmtree(output, ignore_errors=True)
        done = typed(*command, "--data", asked, *options)
        assert done.exit_code == 0, done.stderr
        result = json.loads((output / "result.json").read_text())
        found = (result["unreduced"], *result["trials"])
        own = next(each for each in found if each["name"] in (f"illava {ratio}", f"none {ratio:g}"))
        assert (own["asked"], own["right"], own["held_out"]["accuracy"]) == (4, 2, 0.5)
    assert f"--recipe '{output / 'recipe.toml'}'" in done.stdout


def test_ray_is_an_extra(
    folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ("tune", "--model", folder, "--data", data, "--ray", "-o", tmp_path / "out")
    assert "--ray needs Ray, which is not installed" in error_line(typed(*command), 1)
