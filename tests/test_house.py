"""The rules of the house that a machine can hold."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lvlm_export.cli import COMMANDS
from lvlm_export.families import FAMILIES
from lvlm_export.reduction import METHODS, load_method
from lvlm_profiles.energy import METERS
from lvlm_runtime.backends import BACKENDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "lvlm_export": ROOT / "exporter" / "lvlm_export",
    "lvlm_runtime": ROOT / "runtime" / "lvlm_runtime",
    "lvlm_profiles": ROOT / "profiles" / "lvlm_profiles",
}
# Who may import whom: each package itself and those after it.
MAY_IMPORT = {
    "lvlm_export": {"lvlm_export", "lvlm_runtime", "lvlm_profiles"},
    "lvlm_runtime": {"lvlm_runtime", "lvlm_profiles"},
    "lvlm_profiles": {"lvlm_profiles"},
}
EXPORT_ONLY = {
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "huggingface_hub",
}
MAX_LINES = 300
TABLES = {
    "lvlm_export.cli.COMMANDS": COMMANDS,
    "lvlm_export.families.FAMILIES": FAMILIES,
    "lvlm_export.reduction.METHODS": METHODS,
    "lvlm_runtime.backends.BACKENDS": BACKENDS,
    "lvlm_profiles.energy.METERS": METERS,
}
# Modules beside the registered ones that are no entry themselves.
HELPERS = {
    "lvlm_export.commands": {"options", "profile_table", "recipes", "summary"},
    "lvlm_export.families": {"projected_llava", "projectors", "towers"},
    "lvlm_export.reduction": {"by_hand", "compose", "reducers", "schedule", "selectors", "tensors"},
    "lvlm_runtime.backends": set(),
    "lvlm_profiles.energy": set(),
}


def python_files(*directories: Path) -> list[Path]:
    """All Python files below some directories."""
    return sorted(path for directory in directories for path in directory.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Every module a file imports, at the top or in a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize(
    "path", python_files(*PACKAGES.values(), ROOT / "tests"), ids=lambda p: p.name
)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files(PACKAGES[package])
        for name in imported(path)
        if name.split(".")[0] in PACKAGES and name.split(".")[0] not in MAY_IMPORT[package]
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ["lvlm_runtime", "lvlm_profiles"])
def test_what_runs_on_the_device_needs_no_export_library(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files(PACKAGES[package])
        for name in imported(path)
        if name.split(".")[0] in EXPORT_ONLY
    ]
    assert wrong == []


def test_heavy_libraries_of_a_backend_stay_in_its_file() -> None:
    backends = {PACKAGES["lvlm_runtime"] / "backends" / f"{name}.py" for name in BACKENDS}
    libraries = set(BACKENDS) | {"tensorrt_rtx"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files(PACKAGES["lvlm_runtime"], PACKAGES["lvlm_profiles"])
        if path not in backends
        for name in imported(path)
        if name.split(".")[0] in libraries
    ]
    assert wrong == []


def names_in(node: ast.AST) -> set[str]:
    """Names, attributes and strings inside an expression."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.Attribute):
            found.add(part.attr)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.add(part.value)
    return found


def test_nobody_but_a_family_asks_which_model_it_is() -> None:
    families = PACKAGES["lvlm_export"] / "families"
    wrong = []
    for path in python_files(*PACKAGES.values()):
        if families in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            asked = node.subject if isinstance(node, ast.Match) else node
            compares = isinstance(node, ast.Compare | ast.Match)
            if compares and "model_type" in names_in(asked):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert wrong == []


@pytest.mark.parametrize("table", TABLES)
def test_every_registered_entry_can_be_imported(table: str) -> None:
    for name, entry in TABLES[table].items():
        module, attribute = entry.split(":")
        assert hasattr(importlib.import_module(module), attribute), name


@pytest.mark.parametrize(
    ("package", "table"),
    [
        ("lvlm_export.commands", COMMANDS),
        ("lvlm_export.families", FAMILIES),
        ("lvlm_export.reduction", METHODS),
        ("lvlm_runtime.backends", BACKENDS),
        ("lvlm_profiles.energy", METERS),
    ],
)
def test_every_file_of_a_registry_is_registered(package: str, table: dict[str, str]) -> None:
    files = {each.name for each in pkgutil.iter_modules(importlib.import_module(package).__path__)}
    registered = {entry.split(":")[0].removeprefix(f"{package}.") for entry in table.values()}
    assert files - HELPERS[package] == registered


def test_a_method_is_registered_under_its_own_name() -> None:
    assert [load_method(name).name for name in METHODS] == list(METHODS)


def test_packages_have_one_version() -> None:
    import tomllib

    import lvlm_export
    import lvlm_runtime

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert lvlm_export.__version__ == lvlm_runtime.__version__ == project["version"]
