"""Nothing in the working directory or in a bundle runs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from house import PACKAGES, ROOT, place, python_files
from lvlm_profiles.missing import Missing
from lvlm_profiles.processes import find_program, import_places, python_command
from lvlm_runtime.profile import memory_run

# Modules that the program and Python itself load, and those that they would load on the way.
BAITS = ("numpy", "json", "runpy", "click", "PIL", "jinja2", "lvlm_runtime", "sitecustomize")
SCRIPT = Path(sys.executable).with_name("lvlm-export")


@pytest.fixture
def baited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of modules that leave ``ran`` behind."""
    here = tmp_path / "here"
    here.mkdir()
    for name in BAITS:
        code = f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})"
        (here / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(here)
    return tmp_path / "ran"


def test_the_process_that_measures_memory_imports_nothing_from_here(
    baited: Path, demo_bundle: Path
) -> None:
    job = memory_run.Job(str(demo_bundle), "onnxruntime", "cpu", 1, "What?", (), 1, 1.0, 1)
    found = memory_run.read_memory(job)
    assert not baited.exists(), baited.read_text(encoding="utf-8")
    assert isinstance(found, memory_run.Readings), found


def test_the_command_imports_nothing_from_here(baited: Path, demo_bundle: Path) -> None:
    if not SCRIPT.exists():
        pytest.skip("the package is not installed beside this Python")
    done = subprocess.run(
        [SCRIPT, "inspect", demo_bundle], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not baited.exists(), baited.read_text(encoding="utf-8")


def test_a_bundle_that_is_the_working_directory_runs_nothing(baited: Path) -> None:
    (Path.cwd() / "manifest.json").write_text("{}", encoding="utf-8")
    job = memory_run.Job(str(Path.cwd()), "onnxruntime", "cpu", 1, "What?", (), 1, 1.0, 1)
    found = memory_run.read_memory(job)
    assert isinstance(found, Missing)
    assert "schema" in found.reason
    assert not baited.exists()


def test_a_child_imports_from_where_this_process_does(baited: Path) -> None:
    done = subprocess.run(
        python_command("lvlm_export", "--version"), capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("lvlm-export 0."), done.stderr
    assert not baited.exists()


def test_places_are_absolute_and_not_here(
    baited: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(Path.cwd())
    elsewhere = str(tmp_path)
    monkeypatch.setattr(
        sys, "path", ["", ".", "lib", str(Path.cwd()), str(tmp_path / "link"), elsewhere]
    )
    assert import_places() == [elsewhere]
    own = Path(memory_run.__file__).resolve().parents[2]
    monkeypatch.chdir(own)
    monkeypatch.setattr(sys, "path", [str(own)])
    assert import_places() == [str(own)], "this program's own code runs already"


def test_programs_are_not_found_through_relative_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "tegrastats"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.chdir(program.parent)
    for path in (".", "", os.pathsep, "../bin"):
        monkeypatch.setenv("PATH", path)
        assert find_program("tegrastats") is None
    monkeypatch.setenv("PATH", f".{os.pathsep}{program.parent}")
    assert find_program("tegrastats") == str(program)


def test_every_python_is_started_isolated_or_with_a_file() -> None:
    """``sys.executable`` is followed by ``-I`` or by a script, whose folder Python then imports from."""
    wrong = []
    for path in python_files(*PACKAGES.values(), ROOT / "benchmarks", ROOT / "tools"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.List | ast.Tuple) and len(node.elts) > 1:
                first, second = map(ast.unparse, node.elts[:2])
                if re.search(r"executable|python\b", first) and second not in (
                    "'-I'",
                    "__file__",
                    "str(WORKER)",
                ):
                    wrong.append(f"{place(path)}:{node.lineno}: {first}, {second}")
    assert wrong == []


def test_the_scripts_for_a_jetson_start_python_isolated() -> None:
    for path in (ROOT / "jetson").iterdir():
        for line in path.read_text(encoding="utf-8").splitlines():
            for flag in re.findall(r'(?:"\$python"|\bpython3) (-\S+)', line):
                assert flag == "-I", f"{path.name}: {line}"
