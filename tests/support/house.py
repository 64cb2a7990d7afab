"""The packages as files: what the tests of the house walk over."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "lvlm_export": ROOT / "exporter" / "lvlm_export",
    "lvlm_runtime": ROOT / "runtime" / "lvlm_runtime",
    "lvlm_profiles": ROOT / "profiles" / "lvlm_profiles",
}
# The floors of the house, top floor first: a folder or file may import what stands below it, in its
# own package or in one further down. What is not named here has no place yet.
FLOORS = {
    "lvlm_export": (
        *(
            "__main__",
            "cli",
            "demo",
            "tune",
            "bundle",
            "study",
            "check",
            "graphs",
            "advise",
            "plan",
            "checkpoint",
        ),
        *("families", "reduction", "signals"),
    ),
    "lvlm_runtime": (
        *("serve", "profile", "golden", "session", "conversation", "streaming", "pieces", "asking"),
        *("behind", "remembered", "fresh", "answering", "profiled", "request", "chain", "backends"),
        *("engines", "tensorrt"),
        *("graphs", "bundle", "prompt", "image", "progress", "errors"),
    ),
    "lvlm_profiles": (
        *("planner", "report", "cost", "energy", "devices", "shapes", "records", "registry"),
        *("readers", "files", "processes", "statistics", "missing", "errors"),
    ),
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


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the three packages."""
    for package, directory in PACKAGES.items():
        for path in python_files(directory):
            parts = path.relative_to(directory.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            if name != package:
                yield name, path


def place(path: Path) -> str:
    """A file as a message names it: from the root, or by its name where it lies elsewhere."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
