"""Bundles of a few hand-written files, published by builds that are killed or meet another.

As a program it is a small process without torch that forks a child for every operation; each child
makes its bundle with the code that every build goes through.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kills import KILLED, REFUSED, Process
from lvlm_export.bundle import construction
from lvlm_export.bundle.construction import Construction
from lvlm_export.bundle.publish import make_bundle
from lvlm_export.bundle.workspace import Workspace, file_ref
from lvlm_runtime.bundle.bundle import MANIFEST, STAMP, manifest_text, read_manifest
from lvlm_runtime.bundle.manifest import SCHEMA, Manifest
from lvlm_runtime.errors import LvlmError
from smallest import smallest

OLD, NEW, OTHER = "old", "new", "other"
GRAPHS = ("a.onnx", "b.onnx")
# What lies beside the bundle and is none of the build's business.
FOREIGN = ("bundle.old/thesis", "bundle.building/thesis", "bundle.building~", ".bundle.swp")
EMPTY = smallest(Manifest)


def contents(key: str) -> dict[str, bytes]:
    """Files of the bundle of a key."""
    names = (*GRAPHS, "weights.bin", "tokenizer/tokenizer.json")
    return {name: f"{name} of {key}".encode() for name in names}


def manifest_of(key: str, refs: dict[str, Any]) -> Manifest:
    """A manifest that says no more than which files there are."""
    return dataclasses.replace(EMPTY, schema=SCHEMA, content_key=key, files=refs)


def write_bundle(directory: Path, key: str) -> None:
    """The bundle of a key, and what opening it and building engines leaves in it."""
    for name, data in contents(key).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    refs = {name: file_ref(directory / name) for name in contents(key)}
    (directory / MANIFEST).write_text(manifest_text(manifest_of(key, refs)))
    (directory / STAMP).write_text("{}")
    (directory / "engines" / "rtx").mkdir(parents=True)
    for name in ("a.engine", "record.json", "kernels.cache"):
        (directory / "engines" / "rtx" / name).write_bytes(b"engine")


def is_whole(directory: Path, key: str) -> bool:
    """The bundle of that key, with every byte; asked without the code that is tested."""
    try:
        manifest = read_manifest(directory)
    except LvlmError:
        return False
    found = {name: (directory / name).read_bytes() for name in manifest.files}
    return manifest.content_key == key and found == contents(key)


def build(output: Path, key: str, force: bool, exports: Path) -> None:
    """As ``build`` of the command line: graphs that are done are not exported again."""

    def make(_construction: Construction, workspace: Workspace) -> Manifest:
        data = contents(key)
        for name in GRAPHS:
            if not workspace.is_done(name):
                with exports.open("a") as log:
                    log.write(f"{key} {name}\n")
                workspace.path("weights.bin").write_bytes(data["weights.bin"])
                workspace.path(name).write_bytes(data[name])
                workspace.finish(name, {})
        workspace.path("tokenizer").mkdir(exist_ok=True)
        workspace.path("tokenizer/tokenizer.json").write_bytes(data["tokenizer/tokenizer.json"])
        return manifest_of(key, {name: file_ref(workspace.path(name)) for name in data})

    make_bundle(output, key, make, force)


class World:
    """A directory in which a bundle is to be replaced.

    Args:
        root: The directory, which is made anew.
        scenario: A key of ``SCENARIOS``.
    """

    def __init__(self, root: Path, scenario: str) -> None:
        shutil.rmtree(root, ignore_errors=True)
        self.place = root / "place"
        self.exports, self.messages = root / "exports", root / "messages"
        for name in FOREIGN:
            (self.place / name).parent.mkdir(parents=True, exist_ok=True)
            (self.place / name).write_text("mine")
        self.output = self.target = self.place / "bundle"
        SCENARIOS[scenario](self)
        self.before = self.target.exists()
        names = {path.name for path in self.place.iterdir()} | {"bundle"}
        self.names = names - {construction.directory_of(self.target).name}

    def start(self, key: str = NEW, at: int = 0, held: bool = False) -> Process:
        """A build of a key, with ``--force``."""
        return Process(lambda: build(self.output, key, True, self.exports), self.messages, at, held)

    def is_old(self) -> bool:
        """What was there at the beginning is there."""
        if not self.before or not self.target.exists():
            return not self.before and not self.target.exists()
        return is_whole(self.target, OLD) or not any(self.target.iterdir())

    def is_new(self, key: str = NEW) -> bool:
        """The new bundle is there."""
        return self.output.exists() and is_whole(self.target, key)

    def is_tidy(self) -> bool:
        """Nothing of the build is left, and nothing of others is lost."""
        kept = all((self.place / name).read_text() == "mine" for name in FOREIGN)
        link = self.output == self.target or self.output.is_symlink()
        return kept and link and {path.name for path in self.place.iterdir()} == self.names

    def exported(self) -> list[str]:
        """The exports of all builds."""
        return self.exports.read_text().splitlines() if self.exports.exists() else []


def over_a_link(world: World) -> None:
    """The output is a link to a bundle, which lies elsewhere in the directory."""
    world.target = world.place / "store"
    write_bundle(world.target, OLD)
    world.output.symlink_to("store")


def over_a_damaged(world: World) -> None:
    """A byte of the bundle that is to be built has changed; nobody needs ``--force``."""
    write_bundle(world.target, NEW)
    (world.target / "a.onnx").write_bytes(b"?" * len(contents(NEW)["a.onnx"]))
    world.is_old = lambda: is_damaged(world.target)  # type: ignore[method-assign]


def is_damaged(directory: Path) -> bool:
    """What ``over_a_damaged`` has made is there."""
    return (directory / "b.onnx").exists() and (directory / "a.onnx").read_bytes()[:1] == b"?"


def with_another_unfinished(world: World) -> None:
    """A build of another key was killed before."""
    write_bundle(world.target, OLD)
    assert world.start(OTHER, 12).wait() == KILLED
    world.exports.unlink(missing_ok=True)


SCENARIOS: dict[str, Callable[[World], Any]] = {
    "fresh": lambda _world: None,
    "empty": lambda world: world.target.mkdir(),
    "force": lambda world: write_bundle(world.target, OLD),
    "link": over_a_link,
    "damaged": over_a_damaged,
    "unfinished": with_another_unfinished,
}


def kill_everywhere(root: Path, scenario: str, exchanges: bool) -> int:
    """One kill before each operation, and after each the same command again.

    Returns:
        The number of operations.
    """
    at = 0
    while True:
        at += 1
        world = World(root, scenario)
        status = world.start(NEW, at).wait()
        where = f"{scenario}, killed before operation {at}"
        if status == 0:
            assert at > 20, where
            return at - 1
        assert status == KILLED, f"{where}: {world.messages.read_text()}"
        aside = construction.directory_of(world.target) / construction.REPLACED
        set_aside = not exchanges and not world.target.exists()
        set_aside = set_aside and (is_whole(aside, OLD) or is_damaged(aside))
        assert world.is_old() or world.is_new() or set_aside, f"{where}: neither old nor new"
        is_written = world.is_new() or set_aside
        before = world.exported()
        status = world.start(NEW).wait()
        assert status == 0, f"{where}, and again: {world.messages.read_text()}"
        assert world.is_new(), f"{where}, and again: not the new bundle"
        assert world.is_tidy(), f"{where}, and again: {sorted(world.place.iterdir())}"
        after = world.exported()
        assert len(after) <= len(GRAPHS) + 1, f"{where}, and again: exported {after}"
        assert not is_written or after == before, f"{where}, and again: exported {after}"


def kill_twice(root: Path, scenario: str) -> int:
    """A kill before every fifth operation, and one before every third operation of the next build."""
    kills = 0
    for first in range(1, 1000, 5):
        for second in range(1, 1000, 3):
            world = World(root, scenario)
            if world.start(NEW, first).wait() == 0:
                return kills
            if world.start(NEW, second).wait() == 0:
                break
            kills += 2
            where = f"{scenario}, killed before operation {first} and then {second}"
            status = world.start(NEW).wait()
            assert status == 0, f"{where}: {world.messages.read_text()}"
            assert world.is_new(), f"{where}: not the new bundle"
            assert world.is_tidy(), f"{where}: {sorted(world.place.iterdir())}"
    raise AssertionError("it never ended")


def meet_everywhere(root: Path, scenario: str, key: str) -> int:
    """A second build while the first is held up before each of its operations."""
    for at in range(1, 1000):
        world = World(root, scenario)
        one = world.start(NEW, at, held=True)
        if not one.reach():
            assert one.wait() == 0
            return at - 1
        where = f"{scenario}, a build of {key} while one waits before operation {at}"
        other = world.start(key).wait()
        said = world.messages.read_text() if other else ""
        assert other in (0, REFUSED), f"{where}: {said}"
        assert other == 0 or "another build is writing" in said, f"{where}: {said}"
        assert other != 0 or world.is_new(key), f"{where}: it said that all is well"
        status = one.go_on()
        assert status == 0, f"{where}: the first said {world.messages.read_text()}"
        # The other may have begun when nothing was left to do for the first but to end.
        assert world.is_new() or (other == 0 and world.is_new(key)), (
            f"{where}: all is well, it said"
        )
        assert world.is_tidy(), f"{where}: {sorted(world.place.iterdir())}"
    raise AssertionError("it never ended")


def main() -> None:
    """Run one case and print how many operations there were."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("case", choices=("kill", "twice", "meet"))
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--no-exchange", action="store_true")
    parser.add_argument("--key", default=NEW)
    options = parser.parse_args()
    if options.no_exchange:
        construction.exchange = lambda _one, _other: False
    if options.case == "kill":
        count = kill_everywhere(options.root, options.scenario, not options.no_exchange)
    elif options.case == "twice":
        count = kill_twice(options.root, options.scenario)
    else:
        count = meet_everywhere(options.root, options.scenario, options.key)
    print(json.dumps(count))


if __name__ == "__main__":
    main()
