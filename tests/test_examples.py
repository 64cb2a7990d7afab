"""The examples do what their pages say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import PICTURE

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
# What each prints and leaves behind.
PRINTS = {
    "01_build_and_ask": (
        "\nyellow\n",
        "ratio 0.33: yellow (65 visual tokens",
        "ratio 1: yellow (196",
    ),
    "02_two_methods_compared": ("95 % interval", " lost, "),
    "03_engines_for_a_gpu": ("yellow\n",),
    "04_profile_and_compare": ("\nyellow\n", "ttft_ms"),
    "05_your_own_method": ("centre", "features@12 65"),
    "06_from_python": (
        *("streamed: yellow, first token after ", "slowest: ", "messages: yellow\n"),
        *(
            "batch: yellow, yellow, yellow\n",
            "banned: yellow, not ",
            "refused: https://example.org",
        ),
    ),
}
LEAVES = {
    "01_build_and_ask": ("bundle/manifest.json",),
    "02_two_methods_compared": ("fastv.csv", "downsample.csv"),
    "03_engines_for_a_gpu": ("bundle/engines/rtx/record.json",),
    "04_profile_and_compare": ("before/report.html", "after/report.json"),
    "05_your_own_method": ("bundle/manifest.json", "kept.png"),
    "06_from_python": ("bundle/manifest.json",),
}


def run(name: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run an example with this environment's commands, away from the repository."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(EXAMPLES / name / "run.sh"), str(directory)],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory.parent,
        env={**os.environ, "PATH": path, "COLUMNS": "120"},
    )


def check(name: str, directory: Path) -> None:
    """Run it and look at what it printed and left."""
    done = run(name, directory)
    assert done.returncode == 0, done.stderr
    shown = done.stdout + done.stderr if name.startswith("05") else done.stdout
    assert [words for words in PRINTS[name] if words not in shown] == []
    assert [path for path in LEAVES[name] if not (directory / path).exists()] == []


def test_asking_from_python(demo_bundle: Path) -> None:
    """The program alone, on the bundle that other tests share."""
    program = EXAMPLES / "06_from_python" / "ask.py"
    command = [sys.executable, str(program), str(demo_bundle), str(PICTURE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [words for words in PRINTS["06_from_python"] if words not in done.stdout] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTS)
def test_an_example_runs_from_nothing(name: str, tmp_path: Path) -> None:
    if name == "03_engines_for_a_gpu":
        pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    check(name, tmp_path / "out")


def test_every_example_is_listed_and_run() -> None:
    names = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
    assert [name[:2] for name in names] == [f"{n:02}" for n in range(1, len(names) + 1)]
    assert list(PRINTS) == list(LEAVES) == names
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in names:
        assert f"[{name}]({name}/README.md)" in page
        assert os.access(EXAMPLES / name / "run.sh", os.X_OK)


def test_the_way_into_the_table_that_example_05_shows_is_the_real_one() -> None:
    """The page quotes a line of ``METHODS``; a line of that form stands there for every method."""
    from lvlm_export.reduction import METHODS

    page = (EXAMPLES / "05_your_own_method" / "README.md").read_text(encoding="utf-8")
    quoted = '    "{0}": "lvlm_export.reduction.methods.{0}:METHOD",'
    assert quoted.format("centre") in page
    table = (ROOT / "exporter/lvlm_export/reduction/__init__.py").read_text(encoding="utf-8")
    assert "lvlm_export/reduction/__init__.py" in page
    assert [name for name in METHODS if quoted.format(name) not in table] == []
