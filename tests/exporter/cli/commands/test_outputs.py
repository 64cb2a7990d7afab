"""Files that commands write for people: another's file in the place is named, and stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import error_line, typed

# Before a bundle is opened, so that none is needed; {} is the place to write to.
WRITERS = {
    "table.csv": ("eval", "absent", "--data", "absent.jsonl", "--csv", "{}/table.csv"),
    "sites.png": ("visualize", "absent", "--image", "absent.png", "-o", "{}/sites.png"),
    "sites.gif": ("visualize", "absent", "--image", "absent.png", "-o", "{}/sites.gif"),
    "sites.html": ("visualize", "absent", "--image", "absent.png", "-o", "{}/sites.html"),
    "report.json": ("profile", "absent", "-o", "{}"),
    "report.md": ("profile", "absent", "-o", "{}"),
    "report.html": ("profile", "absent", "-o", "{}"),
}


def line_of(place: Path, name: str) -> str:
    return error_line(typed(*(word.format(place) for word in WRITERS[name])), 1)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("content", [b"mine", b'{"kind": "mine"}', b"\x89PNG\r\n", b"\x00" * 9])
def test_a_file_of_somebody_else_stays(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert f"{path} is there and was not written by this command; move it, or name" in line_of(
        tmp_path, name
    )
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", WRITERS)
def test_a_directory_in_the_place_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert line_of(tmp_path, name) == f"error: {tmp_path / name}: is a directory"


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_is_marked_read_only_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    path.chmod(0o444)
    line = line_of(tmp_path, name)
    assert line == f"error: {path}: permission denied; change its rights or name another path"
    assert path.read_bytes() == b""


@pytest.mark.parametrize("name", WRITERS)
def test_a_link_to_a_file_of_somebody_else_stays(tmp_path: Path, name: str) -> None:
    thesis = tmp_path / "thesis"
    thesis.write_bytes(b"mine")
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / name).symlink_to(thesis)
    assert "was not written by this command" in line_of(tmp_path / "place", name)
    assert thesis.read_bytes() == b"mine"


@pytest.mark.parametrize("name", WRITERS)
def test_what_comes_first_is_said_first(tmp_path: Path, name: str) -> None:
    """With nothing in the way it is the bundle, or the data, that is not there."""
    assert "absent" in line_of(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_own_files_are_replaced(tmp_path: Path, tiny_llava: Path) -> None:
    from command_line import PICTURE

    bundle, data = tiny_llava / "bundle", tmp_path / "data.jsonl"
    data.write_text(json.dumps({"image": str(PICTURE), "question": "?", "answer": "red"}) + "\n")
    place = tmp_path / "place"
    place.mkdir()
    png, page, table = place / "sites.png", place / "sites.html", place / "table.csv"
    moving = place / "sites.gif"
    written = [word for path in (png, page, moving) for word in ("-o", path)]
    drawn = ("visualize", bundle, "--image", PICTURE, "--ratio", "0.5", *written)
    asked = ("eval", bundle, "--data", data, "--max-new-tokens", "1", "--csv", table)
    for words in (drawn, asked):
        first = typed(*words)
        assert first.exit_code == 0, first.stderr
        before = {path: path.stat().st_ino for path in place.iterdir()}
        again = typed(*words)
        assert again.exit_code == 0, again.stderr
        assert {path: path.stat().st_ino for path in place.iterdir()} != before
    names = {"sites.png", "sites.html", "sites.gif", "table.csv"}
    assert {path.name for path in place.iterdir()} == names
    assert png.stat().st_size > 1000
