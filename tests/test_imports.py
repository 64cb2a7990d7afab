"""What may be imported when: the runtime never sees torch, and help costs nothing."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import PICTURE, QUESTION, process
from loading import EXPORT, HEAVY, loaded
from lvlm_export.cli import COMMANDS

HELP_LIMIT_S = 0.3


def test_the_runtime_package_imports_nothing_heavy() -> None:
    code = "import lvlm_runtime, sys; print(sorted(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    names = (*HEAVY, "onnxruntime", "lvlm_export", "numpy")
    assert not [name for name in names if f"'{name}'" in result.stdout]


def test_a_whole_run_imports_neither_torch_nor_the_exporter(demo_bundle: Path) -> None:
    words = ["run", str(demo_bundle), "--image", str(PICTURE), "--ratio", "0.5", QUESTION]
    assert loaded(words, (*HEAVY, *EXPORT)) == []
    # The look into sys.modules sees what is there.
    assert loaded(words, ("onnxruntime", "tokenizers")) == ["onnxruntime", "tokenizers"]


def test_the_python_api_imports_neither_torch_nor_the_exporter(demo_bundle: Path) -> None:
    code = (
        "import sys; from lvlm_runtime import Session;"
        f"s = Session.open({str(demo_bundle)!r});"
        f"s.generate(images=[{str(PICTURE)!r}], prompt={QUESTION!r}, ratio=0.33);"
        "print([m for m in sys.modules if m.split('.')[0] in "
        f"{(*HEAVY, 'lvlm_export')!r}])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_inspect_imports_neither_torch_nor_a_backend(demo_bundle: Path) -> None:
    assert loaded(["inspect", str(demo_bundle)], (*HEAVY, "onnxruntime")) == []


@pytest.mark.parametrize("kind", ["methods", "backends", "targets"])
def test_lists_import_no_torch(kind: str) -> None:
    assert loaded(["list", kind], (*HEAVY, "onnxruntime")) == []


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_fast_and_imports_nothing_heavy(command: str) -> None:
    words = [word for word in (command, "--help") if word]
    assert loaded(words, (*HEAVY, *EXPORT, "onnxruntime", "numpy", "rich")) == []
    # Processor time: help waits for nothing, and on a busy machine the wall clock counts others.
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert process(*words).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < HELP_LIMIT_S


@pytest.mark.parametrize("words", [["build", "--ratio", "0.5"], ["verify", "{bundle}"]])
def test_without_torch_building_is_one_line_and_says_where_to_build(
    words: list[str], demo_bundle: Path, tmp_path: Path
) -> None:
    """A device has the runtime alone; ``sys.modules[name] = None`` is Python's way to say absent."""
    typed = [word.format(bundle=demo_bundle) for word in words]
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['lvlm-export', *sys.argv[1:]];"
        "from lvlm_export.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *typed],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: this command needs torch, which is not installed here")
    assert "pip install lvlm-export[export]" in last
    assert list(tmp_path.iterdir()) == []
