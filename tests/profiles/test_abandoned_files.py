"""What a killed process leaves of a file that it was writing, and who may remove it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kills import KILLED, Process
from lvlm_profiles.files import TEMPORARY, hold, remove_abandoned, whole_file, write_whole

OLD, NEW = b"what was there", b"what comes"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is there already, alone in its directory."""
    file = tmp_path / "report.json"
    file.write_bytes(OLD)
    return file


def test_a_kill_at_every_operation_leaves_old_or_new_and_the_next_tidies(
    path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    messages = tmp_path_factory.mktemp("messages") / "messages"
    for at in range(1, 100):
        path.write_bytes(OLD)
        status = Process(lambda: write_whole(path, NEW), messages, at).wait()
        if status == 0:
            break
        assert status == KILLED
        assert path.read_bytes() in (OLD, NEW)
        left = [each for each in path.parent.iterdir() if each != path]
        assert len(left) <= 1
        assert all(each.name.startswith(f".{path.name}.") for each in left)
        assert all(each.name.endswith(TEMPORARY) for each in left)
        write_whole(path, NEW)
        assert list(path.parent.iterdir()) == [path]
    assert at > 4


def test_what_is_abandoned_is_removed_and_nothing_else(path: Path) -> None:
    names = (
        f".other.json.0011aabb{TEMPORARY}",
        f".report.json.mine{TEMPORARY}",
        f"report.json.0011aabb{TEMPORARY}",
        ".report.json.0011aabb.tmp",
        ".report.json.swp",
    )
    for name in names:
        (path.parent / name).write_bytes(OLD)
    (path.parent / f".report.json.00000001{TEMPORARY}").mkdir()
    (path.parent / f".report.json.00000002{TEMPORARY}").symlink_to(path)
    before = set(path.parent.iterdir())
    (path.parent / f".report.json.0011aabb{TEMPORARY}").write_bytes(OLD)
    write_whole(path, NEW)
    assert set(path.parent.iterdir()) == before
    with whole_file(path) as stream:
        remove_abandoned(path.parent)
        stream.write(OLD)
    assert set(path.parent.iterdir()) == before - {path.parent / names[0]}
    assert path.read_bytes() == OLD
    remove_abandoned(path.parent / "absent")


def test_what_the_remover_takes_for_abandoned_is_begun_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may look between the creation of a temporary file and its lock."""
    drawn = iter((b"\0\0\0\1", b"\0\0\0\2", b"\0\0\0\3"))
    seen: list[str] = []

    def draw(_: int) -> bytes:
        if seen:
            (path.parent / seen[-1]).unlink(missing_ok=True)
        number = next(drawn)
        seen.append(f".{path.name}.{number.hex()}{TEMPORARY}")
        return number

    real = hold

    def late(stream: object, place: Path) -> bool:
        if len(seen) == 1:
            place.unlink()
        if len(seen) == 2:
            raise BlockingIOError
        return real(stream, place)  # type: ignore[arg-type]

    monkeypatch.setattr("lvlm_profiles.files.os.urandom", draw)
    monkeypatch.setattr("lvlm_profiles.files.hold", late)
    write_whole(path, NEW)
    assert path.read_bytes() == NEW
    assert len(seen) == 3


def test_a_lock_of_a_file_that_was_replaced_keeps_nobody_out(path: Path) -> None:
    with path.open("rb") as one, path.open("rb") as other:
        assert hold(one, path)
        with pytest.raises(BlockingIOError):
            hold(other, path)
    with path.open("rb") as stream:
        path.unlink()
        assert not hold(stream, path)
        path.write_bytes(OLD)
        assert not hold(stream, path)
