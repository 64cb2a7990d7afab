"""What may be imported when: the runtime never sees torch, and help costs nothing."""

from __future__ import annotations

import json
import pkgutil
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import lvlm_profiles
import lvlm_runtime
from command_line import PICTURE, QUESTION, process
from loading import EXPORT, HEAVY, loaded
from lvlm_export.cli import COMMANDS

HELP_LIMIT_S = 0.3
BACKEND_LIBRARIES = (
    *("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda", "ml_dtypes", "pynvml"),
)
# What is absent where every module of a package must still import. ``sys.modules[name] = None`` is
# Python's way to say absent.
SERVER_LIBRARIES = ("fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client")
ABSENT = {
    "lvlm_runtime": (
        *(*HEAVY, *BACKEND_LIBRARIES, *SERVER_LIBRARIES),
        *("click", "rich", "lvlm_export"),
    ),
    # The standard library alone.
    "lvlm_profiles": (
        *(*HEAVY, *BACKEND_LIBRARIES, "jinja2", "click", "rich"),
        *("numpy", "PIL", "tokenizers", "lvlm_runtime", "lvlm_export"),
    ),
}
# Files that are nothing without their library, and what they say then.
NEED_A_LIBRARY = {
    "lvlm_runtime.backends.onnxruntime": "LvlmError: ONNX Runtime is not installed (",
    **{
        f"lvlm_runtime.serve.{name}": "LvlmError: the server's packages are not installed ("
        for name in (
            *("app", "desk", "forms", "gate", "metrics", "opening", "reading", "server", "web"),
        )
    },
}
MODULES = [
    each.name
    for package in (lvlm_runtime, lvlm_profiles)
    for each in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]
# Imports the named modules one by one and prints what each raised.
IMPORT_EACH = """
import importlib, json, sys
for name in json.loads(sys.argv[2]):
    sys.modules[name] = None
raised = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except Exception as error:
        raised[name] = f"{type(error).__name__}: {error}"
print(json.dumps(raised))
"""


@cache
def raised_on_import(package: str) -> dict[str, str]:
    """What the modules of a package raise where its ``ABSENT`` libraries are not installed."""
    own = [name for name in MODULES if name.startswith(f"{package}.")]
    command = [sys.executable, "-c", IMPORT_EACH, json.dumps(own), json.dumps(ABSENT[package])]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(result.stdout))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports_without_torch_onnx_and_a_backend(module: str) -> None:
    raised = raised_on_import(module.partition(".")[0]).get(module, "")
    expected = NEED_A_LIBRARY.get(module, "")
    assert raised.startswith(expected)
    assert bool(raised) == bool(expected), raised
    assert "\n" not in raised


def without(name: str, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Type a command line where a library is absent."""
    code = (
        f"import sys; sys.modules[{name!r}] = None; sys.argv = ['lvlm-export', *sys.argv[1:]];"
        "from lvlm_export.cli import main; main()"
    )
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


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
    """A device has the runtime alone."""
    done = without("torch", *(word.format(bundle=demo_bundle) for word in words), cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: this command needs torch, which is not installed here")
    assert "pip install 'lvlm-export[cpu,export]'" in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["run", "{bundle}", "What?"],
        ["verify", "{bundle}", "--golden"],
        ["profile", "{bundle}", "-o", "report"],
        # Before anything is exported, not when it is time to compare.
        ["build", "--ratio", "0.5"],
    ],
)
def test_without_onnx_runtime_a_command_is_one_line_and_names_the_extra(
    words: list[str], demo_bundle: Path, tmp_path: Path
) -> None:
    if words[0] == "build":
        # That is what it misses first.
        pytest.importorskip("torch", reason="torch is not installed")
    typed = [word.format(bundle=demo_bundle) for word in words]
    done = without("onnxruntime", *typed, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ONNX Runtime is not installed (")
    assert "pip install 'lvlm-export[cpu]', or 'lvlm-export[cuda]'" in last
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_without_its_packages_the_server_is_one_line_and_names_the_extra(demo_bundle: Path) -> None:
    done = without("fastapi", "serve", str(demo_bundle))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the server's packages are not installed (")
    assert last.endswith("; pip install 'lvlm-export[serve]'")


def test_the_list_of_backends_says_what_to_install() -> None:
    rows = json.loads(without("onnxruntime", "list", "backends", "--json").stdout)
    assert rows["onnxruntime"]["library"] == "not installed"
    assert "pip install 'lvlm-export[cpu]'" in rows["onnxruntime"]["here"]
