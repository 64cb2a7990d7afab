"""A kill before any operation leaves the old bundle or the new one, and the same command ends it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import publishing
from lvlm_export.bundle import exchange as exchange_module
from lvlm_export.bundle.construction import JOURNAL, LOCK, directory_of, open_construction
from lvlm_export.bundle.exchange import exchange
from lvlm_export.bundle.publish import left_behind
from lvlm_runtime.errors import LvlmError, UsageError
from publishing import NEW, OLD, OTHER, World, build, is_whole, write_bundle

EXCHANGE, RENAMES = (), ("--no-exchange",)
# Of the default run a link to an older bundle stands for these.
OTHERS = ("force", "empty", "damaged", "unfinished")


def run(tmp_path: Path, *words: str, program: str = "publishing.py") -> int:
    """A case of ``publishing`` in a process of its own; the number of operations, or its error."""
    file = Path(publishing.__file__).with_name(program)
    command = [sys.executable, str(file), str(tmp_path / "root"), *words]
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("scenario", "way"),
    [
        ("fresh", EXCHANGE),
        ("link", EXCHANGE),
        ("link", RENAMES),
        *(pytest.param(each, EXCHANGE, marks=pytest.mark.slow) for each in OTHERS),
        *(pytest.param(each, RENAMES, marks=pytest.mark.slow) for each in OTHERS),
    ],
)
def test_a_kill_at_every_operation(tmp_path: Path, scenario: str, way: tuple[str, ...]) -> None:
    assert run(tmp_path, "kill", scenario, *way) > 50


@pytest.mark.parametrize(
    ("scenario", "key", "way"),
    [
        ("link", OTHER, EXCHANGE),
        pytest.param("fresh", NEW, EXCHANGE, marks=pytest.mark.slow),
        pytest.param("fresh", OTHER, EXCHANGE, marks=pytest.mark.slow),
        pytest.param("force", NEW, EXCHANGE, marks=pytest.mark.slow),
        pytest.param("link", OTHER, RENAMES, marks=pytest.mark.slow),
        pytest.param("unfinished", OTHER, RENAMES, marks=pytest.mark.slow),
    ],
)
def test_a_second_build_at_every_operation(
    tmp_path: Path, scenario: str, key: str, way: tuple[str, ...]
) -> None:
    assert run(tmp_path, "meet", scenario, "--key", key, *way) > 50


@pytest.mark.slow
@pytest.mark.parametrize("way", [EXCHANGE, RENAMES])
@pytest.mark.parametrize("scenario", ["force", "unfinished"])
def test_two_kills_one_after_the_other(tmp_path: Path, scenario: str, way: tuple[str, ...]) -> None:
    assert run(tmp_path, "twice", scenario, *way) > 300


@pytest.mark.slow
def test_a_kill_at_every_third_operation_of_the_command(tmp_path: Path, tiny_llava: Path) -> None:
    assert run(tmp_path, str(tiny_llava / "checkpoint"), program="kill_command.py") > 50


def force(world: World, key: str = NEW) -> None:
    build(world.output, key, True, world.exports)


def refused(world: World, message: str) -> None:
    """A build is refused, and what was there is there."""
    before = {path: path.read_bytes() for path in world.place.rglob("*") if path.is_file()}
    with pytest.raises(LvlmError, match=message):
        force(world)
    after = {path: path.read_bytes() for path in world.place.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    "name", ["notes.txt", "engines/rtx/notes.txt", "engines/a.engine", "x/y/z"]
)
def test_a_foreign_file_in_the_old_bundle_is_named_and_kept(tmp_path: Path, name: str) -> None:
    world = World(tmp_path / "root", "force")
    path = world.target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    refused(
        world, f"^{path} is not part of the bundle there, which is to be replaced; move it away"
    )
    assert not directory_of(world.target).exists()
    path.unlink()
    force(world)
    assert world.is_new()
    assert world.is_tidy()


def test_a_bundle_with_folders_beyond_all_measure_is_replaced(tmp_path: Path) -> None:
    world = World(tmp_path / "root", "force")
    path = world.target
    for _ in range(1200):
        path /= "d"
        path.mkdir()
    force(world)
    assert world.is_new()
    assert world.is_tidy()


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_replaced_bundle_that_is_in_use_on_nfs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    """NFS renames what is removed while it is open, and refuses to remove that and its folder."""
    from lvlm_export.bundle import construction

    world = World(tmp_path / "root", "force")
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith(".nfs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        if path.name in ("weights.bin", "tokenizer.json"):
            path.rename(path.with_name(f".nfs{os.urandom(12).hex()}"))
        else:
            real(path, missing_ok)

    if not exchanges:
        monkeypatch.setattr(construction, "exchange", lambda _one, _other: False)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        # Of every bundle that is replaced files are open.
        for key in (NEW, OTHER, OLD, NEW, NEW):
            force(world, key)
            assert world.is_new(key)
            assert left_behind(world.output) == directory_of(world.target)
        left = [path for path in directory_of(world.target).rglob("*") if path.is_file()]
        assert {path.name[:4] for path in left} == {".nfs", "jour", "lock"}
    force(world)
    assert world.is_new()
    assert left_behind(world.output) is None
    for path in world.target.rglob(".nfs*"):
        path.unlink()
    assert world.is_tidy()


def test_a_foreign_file_that_comes_during_the_swap_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lvlm_export.bundle import construction

    world = World(tmp_path / "root", "force")

    def late(one: Path, other: Path) -> bool:
        (other / "notes.txt").write_text("mine")
        return exchange(one, other)

    monkeypatch.setattr(construction, "exchange", late)
    notes = directory_of(world.target) / "bundle" / "notes.txt"
    message = (
        f"^{notes} is not part of the bundle that was replaced; move it away and type the same"
    )
    for _ in range(2):
        with pytest.raises(LvlmError, match=message):
            force(world)
        assert notes.read_text() == "mine"
        assert world.is_new(), "it is published all the same"
    notes.unlink()
    force(world)
    assert world.is_tidy()


@pytest.mark.parametrize("text", ["{}", "", '{"name": "app", "icons": []}', "[]"])
def test_a_directory_with_the_manifest_of_something_else_is_kept(tmp_path: Path, text: str) -> None:
    world = World(tmp_path / "root", "fresh")
    world.target.mkdir()
    (world.target / "manifest.json").write_text(text)
    (world.target / "app.js").write_text("mine")
    refused(world, "manifest.json is no manifest of a bundle; remove .* if nothing in it is needed")


@pytest.mark.parametrize("kind", ["directory", "file", "link", "broken link"])
def test_what_has_the_name_of_a_build_and_is_none_is_kept(tmp_path: Path, kind: str) -> None:
    world = World(tmp_path / "root", "fresh")
    path = directory_of(world.target)
    elsewhere = tmp_path / "elsewhere"
    if kind == "file":
        path.write_text("mine")
    elif kind == "broken link":
        path.symlink_to(elsewhere)
    else:
        (elsewhere if kind == "link" else path).mkdir()
        ((elsewhere if kind == "link" else path) / "thesis").write_text("mine")
        if kind == "link":
            path.symlink_to(elsewhere)
    refused(world, f"^{path} is in the way and is no unfinished build; move it, or choose another")
    assert not (path / LOCK).exists()


def test_a_file_beside_an_unfinished_build_stays(tmp_path: Path) -> None:
    world = World(tmp_path / "root", "unfinished")
    path = directory_of(world.target) / "notes.txt"
    path.write_text("mine")
    force(world)
    assert world.is_new()
    assert [each.name for each in path.parent.iterdir()] == ["notes.txt"]
    assert path.read_text() == "mine"


def test_the_name_of_a_build_is_no_name_of_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has the name of an unfinished build; choose another"):
        build(tmp_path / "bundle.lvlm-building", NEW, False, tmp_path / "exports")


def test_a_mount_point_is_not_replaced(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a tmpfs is not permitted here")
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    try:
        with pytest.raises(LvlmError, match=f"{place} is a mount point .*; name a directory in it"):
            build(place, NEW, True, tmp_path / "exports")
        # A bundle that lies there already is as good as anywhere.
        write_bundle(place, NEW)
        build(place, NEW, False, tmp_path / "exports")
        assert not (tmp_path / "exports").exists()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
    assert not directory_of(place).exists()


def test_without_force_a_bundle_of_another_key_stays(tmp_path: Path) -> None:
    world = World(tmp_path / "root", "force")
    with pytest.raises(LvlmError, match="holds a bundle of other options or another checkpoint"):
        build(world.output, NEW, False, world.exports)
    assert world.is_old()
    assert world.is_tidy()


def test_a_bundle_of_another_version_wants_force_too(tmp_path: Path) -> None:
    world = World(tmp_path / "root", "force")
    manifest = world.target / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema": 3', '"schema": 2'))
    with pytest.raises(LvlmError, match="give --force to replace it"):
        build(world.output, NEW, False, world.exports)
    force(world)
    assert world.is_new()
    assert world.is_tidy()


def test_an_unfinished_build_of_another_key_waits_while_nothing_is_to_be_done(
    tmp_path: Path,
) -> None:
    """Its graphs are still there for the build that goes on with them."""
    world = World(tmp_path / "root", "unfinished")
    build(world.output, OLD, False, world.exports)
    assert not world.exported()
    assert JOURNAL in {path.name for path in directory_of(world.target).iterdir()}
    assert len(World(tmp_path / "other", "unfinished").exported()) == 0


def test_a_file_that_is_not_of_the_bundle_is_not_published(tmp_path: Path) -> None:
    with open_construction(tmp_path / "bundle") as construction:
        workspace = construction.workspace(NEW)
        workspace.path("notes.txt").write_text("mine")
        with pytest.raises(LvlmError, match=r"notes\.txt is not part of the bundle; move it away"):
            construction.publish(workspace, publishing.manifest_of(NEW, {}))
    assert not (tmp_path / "bundle").exists()


def test_an_error_at_the_target_names_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path / "root", "fresh")

    def busy(_one: Path, other: Path) -> None:
        raise OSError(16, "Device or resource busy", str(_one), None, str(other))

    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(OSError, match="busy") as caught:
        force(world)
    assert caught.value.filename == str(world.target)


def test_an_open_file_of_the_old_bundle_can_be_read_to_its_end(tmp_path: Path) -> None:
    world = World(tmp_path / "root", "force")
    with (world.target / "a.onnx").open("rb") as stream:
        force(world)
        assert stream.read() == publishing.contents(OLD)["a.onnx"]
    assert is_whole(world.target, NEW)


def test_a_weight_file_that_is_shorter_than_was_noted_is_written_again(tmp_path: Path) -> None:
    """A journal that says more than there is must not fill the rest with zeros."""
    from lvlm_runtime.bundle.manifest import TensorRef

    target, ref = tmp_path / "bundle", TensorRef("float32", (2,), 64, 8, "0")
    with open_construction(target) as construction:
        workspace = construction.workspace(NEW)
        workspace.path("weights.bin").write_bytes(bytes(72))
        workspace.note_weights({"0": ref})
    with open_construction(target) as construction:
        assert construction.workspace(NEW).tensors == {"0": ref}
        (construction.directory / "bundle" / "weights.bin").write_bytes(bytes(71))
        assert construction.workspace(NEW).tensors == {}


def test_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    (other / "full").mkdir(parents=True)
    if exchange(one, other):
        assert (one / "full").exists()
        with pytest.raises(FileNotFoundError) as caught:
            exchange(one, tmp_path / "absent")
        assert caught.value.filename == str(tmp_path / "absent")
    # A C library that has no such function.
    monkeypatch.setattr(exchange_module.ctypes, "CDLL", lambda *_, **__: object())
    before = sorted(tmp_path.rglob("*"))
    assert not exchange(one, other)
    assert sorted(tmp_path.rglob("*")) == before
