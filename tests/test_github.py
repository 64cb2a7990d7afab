"""What GitHub runs and asks fits the project: targets, versions, files, commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml

from command_line import wrong
from documents import ROOT, text_of

WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
FORMS = sorted(path for path in ROOT.glob(".github/ISSUE_TEMPLATE/*.yml") if path.stem != "config")


def jobs(name: str) -> dict[str, Any]:
    """The jobs of a workflow."""
    found: dict[str, Any] = yaml.safe_load(text_of(f".github/workflows/{name}.yml"))["jobs"]
    return found


def scripts(path: Path) -> list[str]:
    """Every script that a workflow runs."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    steps = [step for job in content["jobs"].values() for step in job["steps"]]
    assert all("run" in step or "uses" in step for step in steps)
    return [step["run"] for step in steps if "run" in step]


def test_the_workflow_runs_what_ci_runs() -> None:
    made = set(re.findall(r"make ([\w -]+)", text_of(".ci/run"))[-1].split())
    ran = {
        target
        for script in scripts(ROOT / ".github/workflows/ci.yml")
        for targets in re.findall(r"^make (.+)$", script, re.MULTILINE)
        for target in targets.split()
    }
    assert made <= ran
    makefile = text_of("Makefile")
    assert [target for target in ran if f"\n{target}:" not in makefile] == []


def test_every_python_of_the_classifiers_is_tested_on_both_architectures() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    matrix = jobs("ci")["runtime"]["strategy"]["matrix"]
    assert matrix["python"] == named
    assert matrix["machine"] == ["ubuntu-latest", "ubuntu-24.04-arm"]
    assert f">={named[0]}" == project["requires-python"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_commands_and_files_of_workflows_exist(path: Path) -> None:
    for script in scripts(path):
        for part in re.split(r"&&|\n", script):
            words = shlex.split(part, comments=True)
            if words and words[0].endswith("lvlm-export"):
                assert wrong(words[1:], True) is None
            if "pytest" in words:
                named = [word for word in words if word.startswith("tests/")]
                assert named
                assert all((ROOT / name).exists() for name in named)


def test_the_source_archive_has_what_the_release_looks_for() -> None:
    included = tomllib.loads(text_of("pyproject.toml"))["tool"]["hatch"]["build"]["targets"][
        "sdist"
    ]
    assert "jetson" in included["include"]
    assert (ROOT / "jetson/install.sh").exists()
    assert any(
        "/jetson/install.sh" in each for each in scripts(ROOT / ".github/workflows/release.yml")
    )


@pytest.mark.parametrize("path", FORMS, ids=[path.stem for path in FORMS])
def test_forms_ask_for_what_an_answer_needs(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    labels = {field["id"]: field["attributes"]["label"] for field in fields}
    required = {field["id"] for field in fields if field.get("validations", {}).get("required")}
    assert labels["env"] == "lvlm-export env"
    assert "env" in required
    for label in labels.values():
        if label.startswith("lvlm-export "):
            assert wrong(label.split()[1:], False) is None
    if path.stem != "model":
        assert labels["inspect"] == "lvlm-export inspect BUNDLE --json"
