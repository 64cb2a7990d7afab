"""The rules of the house that a machine can hold."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import warnings
from pathlib import Path

import pytest
import tomllib

from house import PACKAGES, ROOT, modules, place, python_files
from lvlm_export.cli import COMMANDS
from lvlm_export.families import FAMILIES
from lvlm_export.reduction import METHODS, load_method
from lvlm_profiles.energy import METERS
from lvlm_runtime.backends import BACKENDS

OTHERS = ("tests", "benchmarks", "tools")
# A file is one idea; over the first number a warning asks whether it still is, over the second the
# answer is no.
LINES, MAX_LINES = 300, 400
TABLES = {
    "lvlm_export.cli.COMMANDS": COMMANDS,
    "lvlm_export.families.FAMILIES": FAMILIES,
    "lvlm_export.reduction.METHODS": METHODS,
    "lvlm_runtime.backends.BACKENDS": BACKENDS,
    "lvlm_profiles.energy.METERS": METERS,
}
# Who writes files by itself and not through `lvlm_profiles.files`, and why that loses nothing.
WRITERS = {
    "profiles/lvlm_profiles/files.py": "the one place",
    "profiles/lvlm_profiles/devices/memory_probe.py": "a counter of the kernel",
    "exporter/lvlm_export/bundle/budgets.py": "in a workspace, which is published whole",
    "exporter/lvlm_export/bundle/build.py": "in a workspace, which is published whole",
    "exporter/lvlm_export/bundle/weights.py": "in a workspace, which is published whole",
    "exporter/lvlm_export/bundle/construction.py": "a lock without content",
    "exporter/lvlm_export/cli/__init__.py": "os.devnull, in the place of a stdout that is closed",
    "exporter/lvlm_export/study/answers.py": "goes on with its own file, line by line",
}
# Modules beside the registered ones that are no entry themselves.
HELPERS = {
    "lvlm_export.families": {"shared"},
    "lvlm_runtime.backends": {"choice", "clock"},
}


def test_a_file_is_one_idea() -> None:
    lengths = {
        place(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(*PACKAGES.values(), *(ROOT / name for name in OTHERS))
    }
    for name, length in lengths.items():
        if LINES < length <= MAX_LINES:
            warnings.warn(f"{name} has {length} lines: is it still one idea?", stacklevel=1)
    assert [f"{name}: {length}" for name, length in lengths.items() if length > MAX_LINES] == []


def test_a_name_is_one_thing() -> None:
    """No class name stands twice over the three packages."""
    homes: dict[str, list[str]] = {}
    for module, path in modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module)
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def parser_calls(path: Path) -> set[str]:
    """What a file uses that parses or unpacks a format which comes from outside."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Import):
            found |= {f"{alias.asname or alias.name}." for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    wanted = re.compile(
        r"json\.(loads?|JSONDecoder)$|(tomllib|tomli|yaml|gzip|bz2|lzma)\.|zlib\.decompress"
    )
    other = re.compile(r"safetensors\.safe_open$|onnx\.load|pickle\.|marshal\.|shelve\.")
    return {name for name in found if wanted.match(name) or other.match(name)}


def test_every_format_has_one_guarded_reader() -> None:
    """JSON, TOML, YAML, gzip and safetensors are parsed in these files and nowhere else."""
    readers = {
        "profiles/lvlm_profiles/readers.py",
        "exporter/lvlm_export/plan/recipe_formats.py",
        "exporter/lvlm_export/checkpoint/shards.py",
    }
    # What trained the demo model does not ship and reads what it has written itself.
    training = "exporter/lvlm_export/demo/train/"
    found = {place(path): parser_calls(path) for _, path in modules()}
    wrong = {
        name: calls
        for name, calls in found.items()
        if calls and name not in readers and not name.startswith(training)
    }
    assert wrong == {}
    assert all(found[name] for name in readers)


def test_a_parser_in_another_place_is_found(tmp_path: Path) -> None:
    """The test above can fail, however the parser is imported."""
    path = tmp_path / "wrong.py"
    path.write_text(
        "import json\nimport gzip as packed\nfrom json import load\nimport yaml\n"
        "def read(text):\n    return json.loads(text), json.dumps(text)\n",
        encoding="utf-8",
    )
    assert parser_calls(path) >= {"json.loads", "json.load", "yaml."}
    assert "json.dumps" not in parser_calls(path)


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
                wrong.append(f"{place(path)}:{node.lineno}")
    assert wrong == []


def written_lines(path: Path) -> list[int]:
    """Lines of a file at which something is written without ``lvlm_profiles.files``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
        words = [*node.args, *(word.value for word in node.keywords)]
        modes = {w.value for w in words if isinstance(w, ast.Constant) and isinstance(w.value, str)}
        opens = called in ("open", "fdopen") and any(
            re.fullmatch(r"[rwaxbt+]*[wax+][bt+]*", m) for m in modes
        )
        named = ("write_text", "write_bytes", "copyfile", "copytree", "copy2", "move", "touch")
        if opens or called in named:
            found.append(node.lineno)
    return found


def test_a_file_is_written_whole_or_by_one_that_knows_it() -> None:
    found = {
        place(path): lines
        for path in python_files(*PACKAGES.values())
        if (lines := written_lines(path))
    }
    assert {name: lines for name, lines in found.items() if name not in WRITERS} == {}
    assert set(WRITERS) - set(found) == set()


def test_a_write_past_the_one_place_is_found(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(
        'path.write_text("x")\npath.open("rb")\npath.open("w", encoding="utf-8")\n'
        'open(name, mode="r+b")\nbundle.open(directory)\nImage.open(file, formats=("PNG",))\n'
    )
    assert written_lines(path) == [1, 3, 4]


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
        place(path): overdue(path.read_text(encoding="utf-8"), version)
        for path in python_files(*PACKAGES.values())
    }
    assert {name: found for name, found in late.items() if found} == {}


def test_packages_have_one_version() -> None:
    import lvlm_export
    import lvlm_runtime

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert lvlm_export.__version__ == lvlm_runtime.__version__ == project["version"]
