"""The rules of the house that a machine can hold."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

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
OTHERS = ("tests", "benchmarks", "tools")
EXPORT_ONLY = {
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "huggingface_hub",
}
# A file is one idea; over the first number a warning asks whether it still is, over the second the
# answer is no.
LINES, MAX_LINES = 300, 400
# The floors of the house, top floor first: a folder or file may import what stands below it, in its
# own package or in one further down. What is not named here has no place yet.
FLOORS = {
    "lvlm_export": (
        *("cli", "demo", "bundle", "study", "check", "graphs", "advise", "plan", "checkpoint"),
        *("families", "reduction"),
    ),
    "lvlm_runtime": (
        *("profile", "golden", "session", "request", "chain", "backends", "engines", "tensorrt"),
        *("graphs", "bundle", "prompt", "image", "progress", "errors"),
    ),
    "lvlm_profiles": (
        *("planner", "report", "cost", "energy", "devices", "shapes", "records", "registry"),
        *("files", "statistics", "missing", "errors"),
    ),
}
# Files on a package's top floor, ``__init__`` included.
TOP_FLOOR = {"lvlm_export": 14, "lvlm_runtime": 15, "lvlm_profiles": 9}
TABLES = {
    "lvlm_export.cli.COMMANDS": COMMANDS,
    "lvlm_export.families.FAMILIES": FAMILIES,
    "lvlm_export.reduction.METHODS": METHODS,
    "lvlm_runtime.backends.BACKENDS": BACKENDS,
    "lvlm_profiles.energy.METERS": METERS,
}
# Modules beside the registered ones that are no entry themselves.
HELPERS = {
    "lvlm_export.families": {"shared"},
    "lvlm_runtime.backends": {"choice", "clock"},
}


def python_files(*directories: Path) -> list[Path]:
    """All Python files below some directories."""
    return sorted(path for directory in directories for path in directory.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Every module a file imports, at the top, in a function or for its types."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def imported_modules(path: Path) -> Iterator[str]:
    """As ``imported``, with ``from package import module`` as that module too."""
    yield from imported(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_a_file_is_one_idea() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(*PACKAGES.values(), *(ROOT / name for name in OTHERS))
    }
    for name, length in lengths.items():
        if LINES < length <= MAX_LINES:
            warnings.warn(f"{name} has {length} lines: is it still one idea?", stacklevel=1)
    assert [f"{name}: {length}" for name, length in lengths.items() if length > MAX_LINES] == []


def floor(module: str) -> tuple[int, int] | None:
    """Package and floor of a module, counted from the top; None for a package itself."""
    package, _, inside = module.partition(".")
    if package not in FLOORS or not inside:
        return None
    return list(FLOORS).index(package), FLOORS[package].index(inside.split(".")[0])


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the three packages."""
    for package, directory in PACKAGES.items():
        for path in python_files(directory):
            parts = path.relative_to(directory.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if name != package:
                yield name, path


def runs_up(module: str, path: Path) -> list[str]:
    """Imports of a module that lead to a floor above its own, or to no floor at all."""
    own = floor(module)
    assert own is not None
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for name in imported(path)
        if (other := floor(name)) is not None and other < own
    ]


def test_imports_run_one_way_down_the_house() -> None:
    assert [line for module, path in modules() for line in runs_up(module, path)] == []


def test_an_import_that_runs_up_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: a graph that imports the session, and a runtime that exports."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
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


def test_a_name_is_one_thing() -> None:
    """No class name stands twice over the three packages."""
    homes: dict[str, list[str]] = {}
    for module, path in modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module)
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


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
        ("lvlm_export.cli.commands", COMMANDS),
        ("lvlm_export.families", FAMILIES),
        ("lvlm_export.reduction.methods", METHODS),
        ("lvlm_runtime.backends", BACKENDS),
        ("lvlm_profiles.energy", METERS),
    ],
)
def test_every_file_of_a_registry_is_registered(package: str, table: dict[str, str]) -> None:
    files = {each.name for each in pkgutil.iter_modules(importlib.import_module(package).__path__)}
    registered = {entry.split(":")[0].removeprefix(f"{package}.") for entry in table.values()}
    assert files - HELPERS.get(package, set()) == registered


def test_a_method_is_registered_under_its_own_name() -> None:
    assert [load_method(name).name for name in METHODS] == list(METHODS)


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "AGENTS.md"])
@pytest.mark.parametrize("package", FLOORS)
def test_documents_say_the_order_of_folders(document: str, package: str) -> None:
    folders = [each for each in FLOORS[package] if (PACKAGES[package] / each).is_dir()]
    text = (ROOT / document).read_text(encoding="utf-8")
    assert re.search(rf"^{package} +{' > '.join(folders)}$", text, re.MULTILINE)


@pytest.mark.parametrize("package", FLOORS)
def test_the_readme_says_what_every_folder_is_for(package: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
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


def overdue(text: str, version: str) -> list[str]:
    """Releases that a deprecation names, ``removed in 0.3.0``, and that have come."""
    now = tuple(map(int, version.split(".")))
    named = re.findall(r"removed in (\d+\.\d+\.\d+)", text)
    return [each for each in named if tuple(map(int, each.split("."))) <= now]


def test_nothing_outlives_the_release_that_removes_it() -> None:
    """RELEASE.md has the rule."""
    assert overdue("will be removed in 0.3.0", "0.2.9") == []
    assert overdue("will be removed in 0.3.0", "0.10.0") == ["0.3.0"]
    version = importlib.import_module("lvlm_export").__version__
    late = {
        str(path.relative_to(ROOT)): overdue(path.read_text(encoding="utf-8"), version)
        for path in python_files(*PACKAGES.values())
    }
    assert {name: found for name, found in late.items() if found} == {}


def test_packages_have_one_version() -> None:
    import lvlm_export
    import lvlm_runtime

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert lvlm_export.__version__ == lvlm_runtime.__version__ == project["version"]


# First words of a message that are written with a capital wherever they stand.
NAMES = {"CUDA", "JetPack", "LLaVA", "NVML", "ONNX", "TensorRT"}


def error_classes() -> set[str]:
    """The two classes that the command line prints, and every class derived from them."""
    parents = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    classes = {"LvlmError", "UsageError"}
    while more := {name for name, bases in parents.items() if bases & classes} - classes:
        classes |= more
    return classes


def badly_formed(message: ast.expr) -> bool:
    """A literal message that begins with a capital or ends with a full stop.

    A value in braces may begin or end it; a message that is no literal cannot be judged.
    """
    pieces = message.values if isinstance(message, ast.JoinedStr) else [message]
    first, last = pieces[0], pieces[-1]
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        word = re.match(r"\w*", first.value)
        assert word is not None
        if word[0][:1].isupper() and word[0] not in NAMES:
            return True
    ends_with_text = isinstance(last, ast.Constant) and isinstance(last.value, str)
    return ends_with_text and last.value.rstrip().endswith(".")


def badly_formed_messages(path: Path, classes: set[str]) -> list[str]:
    """Messages of errors in a file that are not in the one form."""
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node.args[0])}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and (getattr(node.func, "id", None) or getattr(node.func, "attr", None)) in classes
        and node.args
        and badly_formed(node.args[0])
    ]


def test_messages_have_one_form() -> None:
    """Lower case, what failed, what was given, what to do: no capital in front, no stop behind."""
    classes = error_classes()
    assert classes > {"LvlmError", "UsageError"}
    assert [line for _, path in modules() for line in badly_formed_messages(path, classes)] == []


def test_a_message_of_another_form_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: a capital, a full stop, and a stop behind a value."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "wrong.py"
    path.write_text(
        'raise LvlmError("There is no bundle")\n'
        'raise UsageError("no ratio given.")\n'
        'raise LvlmError(f"{path} is damaged. Copy it again.")\n'
        'raise UsageError(f"TensorRT builds for {gpu}")\n'
        'raise LvlmError(f"{path} is no bundle; give {other}")\n'
        'raise ValueError("Not for the command line.")\n',
        encoding="utf-8",
    )
    lines = badly_formed_messages(path, {"LvlmError", "UsageError"})
    assert [line.split(":")[1] for line in lines] == ["1", "2", "3"]
