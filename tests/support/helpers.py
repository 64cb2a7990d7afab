"""What several test files need: a build without a screen, and one tiny bundle each."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lvlm_export.bundle.build import BuildResult, build
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions


class Silent:
    """Build progress without output; it keeps the steps for tests."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str]] = []

    @contextmanager
    def stage(self, title: str, steps: int) -> Iterator[Callable[[str], None]]:
        yield lambda step: self.steps.append((title, step))


@contextmanager
def made_once(directory: Path) -> Iterator[Path | None]:
    """A directory that the tests and workers of a run share: the first writes it, the others wait.

    Yields where to write it, or None where it is there already. What was written gets its name
    when the block ends without an error, so it is whole where it is there at all.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    part = directory.with_suffix(".part")
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.exists():
            yield None
            return
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        part.rename(directory)


# What most tests build with: it has sites in the tower and in the decoder.
IN_BOTH = "illava"


def tiny_options(*ratios: float, **options: Any) -> BuildOptions:
    """What ``build_tiny`` builds: by ``IN_BOTH`` if not told else."""
    return BuildOptions(ratios, **{"method": IN_BOTH, **options})


def build_tiny(checkpoint: Path, output: Path, *ratios: float, **options: Any) -> BuildResult:
    """Build without the parity gate; tests compare for themselves."""
    settings = tiny_options(*ratios, **options)
    return build(
        Checkpoint.open(checkpoint), checkpoint.name, settings, output, Silent(), verify_samples=0
    )


def edited(checkpoint: Path, copy: Path, name: str, *keys: str, value: Any) -> Checkpoint:
    """A copy of a checkpoint with another value at ``keys`` of one of its JSON files."""
    for path in checkpoint.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = json.loads((copy / name).read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (copy / name).write_text(json.dumps(content))
    return Checkpoint.open(copy)
