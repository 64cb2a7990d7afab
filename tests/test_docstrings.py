"""The examples in public docstrings are run, as a user would type them beside a bundle."""

from __future__ import annotations

import doctest
import importlib
import shutil
from pathlib import Path

import pytest

from command_line import PICTURE

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("exporter", "runtime", "profiles")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules_with_examples() -> list[str]:
    """Dotted names of all modules in which a prompt stands."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT / package).with_suffix("").parts
                found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_do_what_they_say(
    name: str, demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory with a bundle of the demo model and a picture."""
    (tmp_path / "bundle").symlink_to(demo_bundle)
    shutil.copyfile(PICTURE, tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS, report=True)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_python_page_does_what_it_says(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bundle").symlink_to(demo_bundle)
    shutil.copyfile(PICTURE, tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "PYTHON.md"
    result = doctest.testfile(str(page), module_relative=False, optionflags=OPTIONS)
    assert result.attempted > 10
    assert result.failed == 0
