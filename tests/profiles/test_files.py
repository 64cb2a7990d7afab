"""A file is whole or not there, whatever fails, and nothing is left beside it."""

from __future__ import annotations

import errno
import os
import resource
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lvlm_profiles.errors import LvlmError
from lvlm_profiles.files import (
    refuse_other,
    sync_to_disk,
    whole_file,
    write_whole,
)

OLD, NEW = b"what was there", b"what comes"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is there already, alone in its directory."""
    file = tmp_path / "report.json"
    file.write_bytes(OLD)
    return file


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("content", "written"), [("ü\r\n", b"\xc3\xbc\r\n"), (b"\x00\xff", b"\x00\xff"), ("", b"")]
)
def test_text_and_bytes_are_written_as_they_are(
    path: Path, content: str | bytes, written: bytes
) -> None:
    write_whole(path, content)
    assert path.read_bytes() == written
    assert list(path.parent.iterdir()) == [path]


def test_until_the_end_the_old_file_is_there(path: Path) -> None:
    with whole_file(path) as stream:
        stream.write(NEW)
        stream.flush()
        assert path.read_bytes() == OLD
    assert path.read_bytes() == NEW


def test_file_and_directory_are_on_the_disk_before_it_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append(stat.S_IFMT(os.fstat(number).st_mode))
    )
    write_whole(path, NEW)
    assert synced == [stat.S_IFREG, stat.S_IFDIR]


def fails_to_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "fsync", full)


def fails_to_rename(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Path, "replace", full)


@pytest.mark.parametrize("failure", [fails_to_sync, fails_to_rename])
@pytest.mark.parametrize("was_there", [True, False])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    path: Path,
    was_there: bool,
    failure: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not was_there:
        path.unlink()
    failure(monkeypatch)
    with pytest.raises(OSError, match="No space left") as refused:
        write_whole(path, NEW)
    assert refused.value.errno == errno.ENOSPC
    assert refused.value.filename == str(path), "the temporary name says nothing to a user"
    assert [file.read_bytes() for file in path.parent.iterdir()] == [OLD] * was_there


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside, the kernel refuses to write more into any file: a write that really fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_write_that_the_kernel_refuses_leaves_nothing_behind(path: Path) -> None:
    with largest_file(1000), pytest.raises(OSError, match="File too large") as refused:
        write_whole(path, b"x" * 100_000)
    assert refused.value.filename == str(path)
    assert path.read_bytes() == OLD
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_block_that_fails_leaves_nothing_behind(path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with whole_file(path) as stream:
            stream.write(NEW)
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_bytes() == OLD
    assert list(path.parent.iterdir()) == [path]


def test_an_error_of_another_file_keeps_its_name(path: Path) -> None:
    def copies() -> None:
        with whole_file(path) as stream:
            stream.write((path.parent / "source").read_bytes())

    with pytest.raises(FileNotFoundError) as refused:
        copies()
    assert refused.value.filename == str(path.parent / "source")


def test_a_directory_that_is_not_there_is_named_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        write_whole(tmp_path / "absent" / "report.json", NEW)
    assert refused.value.filename == str(tmp_path / "absent" / "report.json")


def test_two_writers_at_once_do_not_meet(path: Path) -> None:
    with whole_file(path) as one, whole_file(path) as other:
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one", "the block that ends last"
    assert list(path.parent.iterdir()) == [path]


def test_rights_are_those_of_a_file_that_is_opened(path: Path) -> None:
    path.unlink()
    write_whole(path, NEW)
    (path.parent / "usual").write_bytes(NEW)
    assert path.stat().st_mode == (path.parent / "usual").stat().st_mode


def test_a_link_is_written_through(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    write_whole(link, NEW)
    assert link.is_symlink()
    assert path.read_bytes() == NEW


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_whole(pipe, NEW)
    reader.join(10)
    assert found == [NEW]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_directory_in_the_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "place", NEW)
    assert [each.name for each in tmp_path.iterdir()] == ["place"]


def test_a_file_system_that_syncs_no_directories_is_put_up_with(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_number: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuses)
    sync_to_disk(path.parent)
    with pytest.raises(OSError, match="Invalid argument"):
        sync_to_disk(path)


def test_rights_stay_as_they_were(path: Path) -> None:
    path.chmod(0o640)
    write_whole(path, NEW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_that_is_marked_read_only_stays(path: Path) -> None:
    """For root, too, who could write it."""
    path.chmod(0o444)
    with pytest.raises(PermissionError) as refused:
        write_whole(path, NEW)
    assert refused.value.filename == str(path)
    assert path.read_bytes() == OLD
    assert list(path.parent.iterdir()) == [path]


def test_a_device_that_is_full_is_named() -> None:
    with pytest.raises(OSError, match="No space left") as refused:
        write_whole(Path("/dev/full"), NEW)
    assert refused.value.filename == "/dev/full"


def test_the_file_behind_an_open_one_is_appended_to(path: Path) -> None:
    with path.open("ab") as stream:
        write_whole(Path(f"/dev/fd/{stream.fileno()}"), NEW)
    assert path.read_bytes() == OLD + NEW


def test_a_file_of_somebody_else_is_not_replaced(path: Path) -> None:
    refuse_other(path.with_name("absent"), b"mark")
    refuse_other(Path("/dev/null"), b"mark")
    with pytest.raises(
        LvlmError, match=f"^{path} is there and was not written by this command; move"
    ):
        refuse_other(path, b"mark")
    path.write_bytes(b"a mark")
    refuse_other(path, b"mark")
    path.write_bytes(b"")
    refuse_other(path, b"mark")
    path.chmod(0o444)
    with pytest.raises(PermissionError):
        refuse_other(path, b"mark")
    with pytest.raises(IsADirectoryError):
        refuse_other(path.parent, b"mark")
    link = path.with_name("broken")
    link.symlink_to("nowhere")
    refuse_other(link, b"mark")
