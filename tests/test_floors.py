"""Imports run one way down the house, and what a device lacks is not imported there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomllib

from house import FLOORS, PACKAGES, ROOT, imported, imported_modules, modules, place, python_files
from lvlm_runtime.backends import BACKENDS

EXPORT_ONLY = {
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "huggingface_hub",
}
# Files on a package's top floor, ``__init__`` included.
TOP_FLOOR = {"lvlm_export": 14, "lvlm_runtime": 15, "lvlm_profiles": 9}


def floor(module: str) -> tuple[int, int] | None:
    """Package and floor of a module, counted from the top; None for a package itself."""
    package, _, inside = module.partition(".")
    if package not in FLOORS or not inside:
        return None
    return list(FLOORS).index(package), FLOORS[package].index(inside.split(".")[0])


def runs_up(module: str, path: Path) -> list[str]:
    """Imports of a module that lead to a floor above its own, or to no floor at all."""
    own = floor(module)
    assert own is not None
    return [
        f"{place(path)} imports {name}"
        for name in imported(path)
        if (other := floor(name)) is not None and other < own
    ]


def test_imports_run_one_way_down_the_house() -> None:
    assert [line for module, path in modules() for line in runs_up(module, path)] == []


def test_an_import_that_runs_up_is_found(tmp_path: Path) -> None:
    """The test above can fail: a graph that imports the session, and a runtime that exports."""
    path = tmp_path / "reader.py"
    path.write_text(
        "from lvlm_runtime.session import Session\n"
        "def late():\n    import lvlm_export.plan.plan\n"
        "import lvlm_profiles.errors\n",
        encoding="utf-8",
    )
    assert runs_up("lvlm_runtime.graphs.reader", path) == [
        "reader.py imports lvlm_runtime.session",
        "reader.py imports lvlm_export.plan.plan",
    ]


def test_no_two_files_import_each_other() -> None:
    """Tarjan's algorithm is more than is needed: what can be taken off from the leaves is no circle."""
    names = dict(modules())
    left = {
        name: {other for other in imported_modules(path) if other in names and other != name}
        for name, path in names.items()
    }
    # A package's ``__init__`` runs before its modules, which may use it; the reverse counts.
    left = {
        name: {other for other in others if not name.startswith(f"{other}.")}
        for name, others in left.items()
    }
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert left == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_top_floor_is_seen_at_a_glance(package: str) -> None:
    assert len(list(PACKAGES[package].glob("*.py"))) <= TOP_FLOOR[package]


@pytest.mark.parametrize("package", ["lvlm_runtime", "lvlm_profiles"])
def test_what_runs_on_the_device_needs_no_export_library(package: str) -> None:
    wrong = [
        f"{place(path)} imports {name}"
        for path in python_files(PACKAGES[package])
        for name in imported(path)
        if name.split(".")[0] in EXPORT_ONLY
    ]
    assert wrong == []


def test_heavy_libraries_of_a_backend_stay_in_its_file() -> None:
    backends = {PACKAGES["lvlm_runtime"] / "backends" / f"{name}.py" for name in BACKENDS}
    libraries = set(BACKENDS) | {"tensorrt_rtx"}
    wrong = [
        f"{place(path)} imports {name}"
        for path in python_files(PACKAGES["lvlm_runtime"], PACKAGES["lvlm_profiles"])
        if path not in backends
        for name in imported(path)
        if name.split(".")[0] in libraries
    ]
    assert wrong == []


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "AGENTS.md"])
@pytest.mark.parametrize("package", FLOORS)
def test_documents_say_the_order_of_folders(document: str, package: str) -> None:
    folders = [each for each in FLOORS[package] if (PACKAGES[package] / each).is_dir()]
    text = (ROOT / document).read_text(encoding="utf-8")
    assert re.search(rf"^{package} +{' > '.join(folders)}$", text, re.MULTILINE)


@pytest.mark.parametrize("package", FLOORS)
def test_the_contributing_page_says_what_every_folder_is_for(package: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(rf"^\w+/{package} .*\n((?:  .*\n)+)", text, re.MULTILINE)
    assert found is not None
    folders = [each for each in FLOORS[package] if (PACKAGES[package] / each).is_dir()]
    assert re.findall(r"^  (\w+) {2,}\S", found[1], re.MULTILINE) == folders


def test_what_ships_does_not_import_what_trained_the_demo() -> None:
    training = "lvlm_export.demo.train"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    left_out = project["tool"]["hatch"]["build"]["targets"]["wheel"]["exclude"]
    assert "exporter/lvlm_export/demo/train" in left_out
    assert [path for path in left_out if not (ROOT / path).exists()] == []
    shipped = [(name, path) for name, path in modules() if not name.startswith(training)]
    assert len(shipped) < len(list(modules()))
    assert [
        f"{module} imports {name}"
        for module, path in shipped
        for name in imported_modules(path)
        if name.startswith(training)
    ] == []
