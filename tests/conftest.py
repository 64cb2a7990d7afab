"""Fixtures that several test files share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

RATIOS = (0.33, 0.5, 1.0)


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the demo model at ratios 0.33, 0.5 and 1.0, built once by the command line.

    Read only: tests that damage a bundle take ``damaged_bundle``.
    """
    from command_line import typed

    directory = tmp_path_factory.mktemp("bundles") / "demo"
    ratios = [word for ratio in RATIOS for word in ("--ratio", str(ratio))]
    result = typed("build", *ratios, "-o", directory)
    assert result.exit_code == 0, result.stderr
    return directory


@pytest.fixture
def damaged_bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the demo bundle that a test may damage."""
    return Path(shutil.copytree(demo_bundle, tmp_path / "copy"))
