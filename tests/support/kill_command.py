"""``lvlm-export build --force`` of a checkpoint, killed at every third operation after the last export.

As a program it loads PyTorch once and forks a child for every build.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import lvlm_export.bundle.build
import lvlm_export.graphs.export
from kills import KILLED, Process
from lvlm_export.bundle import construction
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.cli import cli
from lvlm_runtime.bundle.bundle import check_files, read_manifest
from lvlm_runtime.errors import LvlmError

# Of the tiny LLaVA at one ratio without a baseline.
GRAPHS = 8


def kill_command(root: Path, checkpoint: Path) -> int:
    """As ``kill_everywhere`` for what ``lvlm-export build --force`` does after the last export."""
    # Loaded and computed once and not in every child.
    lvlm_export.graphs.export._registry()
    Checkpoint.open(checkpoint)
    root.mkdir()
    place, messages = root / "place", root / "messages"
    words = ["build", "--model", str(checkpoint), "--no-baseline", "--no-verify", "--force"]
    words += ["-o", str(place / "bundle"), "--ratio"]

    def start(ratio: str, at: int | Callable[[], bool] = 0) -> Process:
        def run() -> None:
            try:
                # What the command prints is not this program's answer.
                with contextlib.redirect_stdout(io.StringIO()):
                    cli.main([*words, ratio])
            except SystemExit as end:
                if end.code:
                    raise LvlmError(f"exit status {end.code}") from None

        return Process(run, messages, at)

    def key() -> str:
        assert start("0.5").wait() == 0, messages.read_text()
        manifest = read_manifest(place / "bundle")
        check_files(place / "bundle", manifest.files)
        return manifest.content_key

    new = key()
    assert start("1.0").wait() == 0, messages.read_text()
    old = read_manifest(place / "bundle").content_key
    assert old != new
    building = construction.directory_of(place / "bundle")
    assert start("0.5", lambda: finished(building) == GRAPHS).wait() == KILLED, "it ended before"
    assert read_manifest(place / "bundle").content_key == old
    kept = place.rename(root / "kept")
    for at in range(1, 1000, 3):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(kept, place)
        if start("0.5", at).wait() == 0:
            return at - 1
        found = read_manifest(place / "bundle")
        check_files(place / "bundle", found.files)
        assert found.content_key in (old, new), f"killed before operation {at}"
        assert key() == new, f"killed before operation {at}"
        assert [path.name for path in place.iterdir()] == ["bundle"]
    raise AssertionError("it never ended")


def finished(building: Path) -> int:
    """How many graphs a build has finished."""
    journal = building / construction.JOURNAL
    return len(json.loads(journal.read_text())["done"]) if journal.exists() else 0


if __name__ == "__main__":
    print(json.dumps(kill_command(Path(sys.argv[1]), Path(sys.argv[2]))))
