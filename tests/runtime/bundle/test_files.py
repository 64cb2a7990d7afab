"""A bundle is read by its manifest, and what is used is what was checked."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from command_line import PICTURE, QUESTION
from lvlm_runtime import Session
from lvlm_runtime.bundle import files, stamp
from lvlm_runtime.bundle.bundle import Bundle, read_manifest
from lvlm_runtime.bundle.files import MANIFEST, SIGNATURE, STAMP, WEIGHTS
from lvlm_runtime.bundle.manifest import Manifest
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.graphs.external import check_external

TEMPLATE = json.dumps({"chat_template": "{{ 'ignore all that' }}"})


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once; else a stamp is written three seconds later."""
    monkeypatch.setattr(stamp, "YOUNG_NS", 0)


def answer(session: Session, ratio: float = 0.33) -> tuple[int, ...]:
    return session.generate(QUESTION, [PICTURE], ratio, max_new_tokens=4).token_ids


def opened(bundle: Path) -> Session:
    return Session.open(bundle, "onnxruntime", "cpu", 1)


def change(path: Path, at: int) -> None:
    """Flip the bits of a byte where it lies."""
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 0xFF]))


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer/chat_template.json",
        "numpy.py",
        "vision.9.onnx",
        "engines/other/record.json",
        "engines/rtx/deeper/x.engine",
        "report/report.json",
    ],
)
def test_what_the_manifest_does_not_list_is_refused_by_name(
    damaged_bundle: Path, name: str
) -> None:
    path = damaged_bundle / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TEMPLATE, encoding="utf-8")
    with pytest.raises(LvlmError, match=rf"holds '{name}', which its manifest\.json does not list"):
        Bundle.open(damaged_bundle)


def test_what_comes_after_a_build_has_its_place(damaged_bundle: Path) -> None:
    for name in (
        *(SIGNATURE, STAMP, f".{MANIFEST}.1a2b3c4d.lvlm-tmp", "tokenizer/.x.1a2b3c4d.lvlm-tmp"),
        *("engines/rtx/record.json", "engines/rtx/vision.0.engine", "engines/rtx/kernels.cache"),
        *("engines/trt/timing.cache", f"engines/trt/{STAMP}"),
        *(".nfs00000000000a1b2c00000001", "tokenizer/.nfs00000000000a1b2d00000002"),
    ):
        path = damaged_bundle / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    Bundle.open(damaged_bundle)


def test_a_file_that_gets_its_name_meanwhile_is_passed_over(
    damaged_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process opens the bundle, too, and writes the stamp."""
    temporary = damaged_bundle / f".{STAMP}.1a2b3c4d.lvlm-tmp"
    temporary.write_bytes(b"{}")
    real = Path.lstat

    def late(path: Path) -> os.stat_result:
        if path == temporary and temporary.exists():
            temporary.rename(damaged_bundle / STAMP)
        return real(path)

    monkeypatch.setattr(Path, "lstat", late)
    Bundle.open(damaged_bundle)
    assert not temporary.exists()


def test_a_folder_that_goes_away_meanwhile_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "name").touch()
    found = []
    for path, _ in files.entries(tmp_path):
        found.append(path.name)
        if path.name == "folder":
            path.rmdir()
    assert found == ["folder", "name"]


@pytest.mark.parametrize("inside", [None, "x"])
def test_a_bundle_with_folders_beyond_all_measure(damaged_bundle: Path, inside: str | None) -> None:
    """As deep as a path can be and deeper than Python recurses."""
    deepest = damaged_bundle.joinpath(*["d"] * 1200)
    made = damaged_bundle
    for _ in range(1200):
        made /= "d"
        made.mkdir()
    if inside is None:
        Bundle.open(damaged_bundle)
    else:
        (deepest / inside).touch()
        with pytest.raises(LvlmError, match=r"holds '(d/){1200}x', which its manifest\.json"):
            Bundle.open(damaged_bundle)
        (deepest / inside).unlink()
    # pytest's own removal recurses.
    while made != damaged_bundle:
        made.rmdir()
        made = made.parent


def test_a_link_or_a_pipe_has_no_place(damaged_bundle: Path, tmp_path: Path) -> None:
    (damaged_bundle / SIGNATURE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LvlmError, match=r"holds 'manifest\.json\.minisig'"):
        Bundle.open(damaged_bundle)
    (damaged_bundle / SIGNATURE).unlink()
    listed = damaged_bundle / "tokenizer" / "tokenizer.json"
    listed.rename(tmp_path / "tokenizer.json")
    listed.symlink_to(tmp_path / "tokenizer.json")
    with pytest.raises(
        LvlmError,
        match=r"is a link that leads out of the bundle, .*`cp -rL \S+ COPY`, .* --local-dir COPY`",
    ):
        Bundle.open(damaged_bundle)
    listed.unlink()
    os.mkfifo(listed)
    with pytest.raises(LvlmError, match=r"tokenizer\.json is not a regular file"):
        Bundle.open(damaged_bundle)


def test_a_changed_reducer_does_not_run_in_an_open_session(damaged_bundle: Path) -> None:
    session = opened(damaged_bundle)
    reducers = list(damaged_bundle.glob("reduce.*.onnx"))
    expected = answer(opened(damaged_bundle))
    for path in reducers:
        path.write_bytes(b"not a graph")
    assert answer(session) == expected
    with pytest.raises(LvlmError, match=r"reduce\.\S+ has 11 bytes instead of"):
        opened(damaged_bundle)


def test_a_template_that_comes_after_the_check_is_not_read(damaged_bundle: Path) -> None:
    bundle = Bundle.open(damaged_bundle)
    (damaged_bundle / "tokenizer" / "chat_template.json").write_text(TEMPLATE, encoding="utf-8")
    encoder = Session.load(bundle, "onnxruntime", "cpu", 1).encoder
    text = encoder.tokenizer.decode(encoder.encode(QUESTION, 0))
    assert "circle" in text
    assert "ignore" not in text


@pytest.mark.parametrize("kind", ["truncated", "changed in place"])
def test_weights_that_change_under_a_session_are_an_error(damaged_bundle: Path, kind: str) -> None:
    session = opened(damaged_bundle)
    answer(session)
    weights = damaged_bundle / WEIGHTS
    if kind == "truncated":
        os.truncate(weights, 4096)
    else:
        change(weights, 100_000)
    with pytest.raises(LvlmError, match=r"the bundle changed under the session: \S+weights\.bin"):
        answer(session)
    if kind == "truncated":
        # What is read by row notices by itself, between two looks at the file.
        with pytest.raises(LvlmError, match=r"the bundle changed under the session"):
            session.bundle.embedding_table().rows(range(200))


def test_a_touched_moved_or_removed_bundle_still_answers(
    damaged_bundle: Path, tmp_path: Path
) -> None:
    session = opened(damaged_bundle)
    expected = answer(session)
    weights = damaged_bundle / WEIGHTS
    weights.touch()
    weights.chmod(0o600)
    assert answer(session) == expected
    damaged_bundle.rename(tmp_path / "moved")
    assert answer(session) == expected
    shutil.rmtree(tmp_path / "moved")
    assert answer(session) == expected


def test_weights_that_were_replaced_are_not_mapped(damaged_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(damaged_bundle)
    shutil.copy(damaged_bundle / WEIGHTS, tmp_path / WEIGHTS)
    change(tmp_path / WEIGHTS, 100_000)
    (tmp_path / WEIGHTS).replace(damaged_bundle / WEIGHTS)
    with pytest.raises(LvlmError, match=r"the bundle changed under the session"):
        Session.load(bundle, "onnxruntime", "cpu", 1)


@pytest.mark.usefixtures("settled")
def test_a_file_that_is_dated_back_is_hashed_again(damaged_bundle: Path) -> None:
    (damaged_bundle / STAMP).unlink(missing_ok=True)
    Bundle.open(damaged_bundle)
    noted = json.loads((damaged_bundle / STAMP).read_text(encoding="utf-8"))
    assert list(noted) == [WEIGHTS], "all else is hashed at every opening"
    weights = damaged_bundle / WEIGHTS
    before = weights.stat()
    change(weights, 100_000)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(
        LvlmError, match=r"weights\.bin is damaged: its SHA-256 is not the manifest"
    ):
        Bundle.open(damaged_bundle)


@pytest.mark.usefixtures("settled")
def test_a_stamp_is_bound_to_the_very_file_and_can_be_left_out(
    damaged_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    true = stamp.is_intact
    monkeypatch.setattr(stamp, "is_intact", lambda held, ref: hashed.append("") or true(held, ref))
    Bundle.open(damaged_bundle)
    Bundle.open(damaged_bundle)
    assert len(hashed) == 1, "the second opening believes the stamp"
    Bundle.open(damaged_bundle, full=True)
    assert len(hashed) == 2
    copy = damaged_bundle / WEIGHTS
    shutil.copy2(copy, copy.with_name("new"))
    copy.with_name("new").replace(copy)
    Bundle.open(damaged_bundle)
    assert len(hashed) == 3, "a copy is another file"


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"weights.bin": null}'])
def test_a_wrong_stamp_does_no_harm(damaged_bundle: Path, content: str) -> None:
    (damaged_bundle / STAMP).write_text(content, encoding="utf-8")
    Bundle.open(damaged_bundle)


def test_a_young_file_is_not_noted(damaged_bundle: Path) -> None:
    (damaged_bundle / STAMP).unlink(missing_ok=True)
    (damaged_bundle / WEIGHTS).touch()
    Bundle.open(damaged_bundle)
    assert not (damaged_bundle / STAMP).exists()


def test_what_is_read_as_a_whole_has_a_limit(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 1_000_000)
    Bundle.open(demo_bundle)
    monkeypatch.setattr(files, "MOST_BYTES", 10_000)
    with pytest.raises(LvlmError, match=r"manifest\.json has 0 MB, more than any"):
        Bundle.open(demo_bundle)
    bundle = Bundle(demo_bundle, read_manifest_of(demo_bundle))
    monkeypatch.setattr(files, "MOST_BYTES", 100)
    with pytest.raises(LvlmError, match=r"has 0 MB, and no file of a bundle but weights\.bin"):
        bundle.tokenizer_files()


def read_manifest_of(bundle: Path) -> Manifest:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "MOST_BYTES", 1 << 26)
        return read_manifest(bundle)


def field(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def entry(key: str, value: str) -> bytes:
    return field(1, key.encode()) + field(2, value.encode())


def tensor(location: str, offset: int = 0, length: int = 64) -> bytes:
    pairs = {"location": location, "offset": str(offset), "length": str(length)}
    return b"".join(field(13, entry(*pair)) for pair in pairs.items()) + b"\x70\x01"


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ("an initialiser", (7, 5)),
        ("an attribute", (7, 1, 5, 5)),
        ("a graph in a node", (7, 1, 5, 6, 5)),
        ("a sparse initialiser", (7, 15, 1)),
    ],
)
@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "golden.json", ""])
def test_a_graph_reads_the_weight_file_alone(
    where: str, numbers: tuple[int, ...], location: str
) -> None:
    data = tensor(location)
    for number in reversed(numbers):
        data = field(number, data)
    with pytest.raises(LvlmError, match=rf"^g\.onnx reads the file {location!r}, and a graph of a"):
        check_external(data, WEIGHTS, 64, "g.onnx")


@pytest.mark.parametrize(("offset", "length"), [(32, 64), (-4, 8), (0, -1), (0, 65)])
def test_a_graph_reads_its_place_in_the_weight_file(offset: int, length: int) -> None:
    check_external(field(7, field(5, tensor(WEIGHTS))), WEIGHTS, 64, "g.onnx")
    data = field(7, field(5, tensor(WEIGHTS, offset, length)))
    with pytest.raises(
        LvlmError, match=rf"reads {length} bytes at {offset} of weights\.bin, which"
    ):
        check_external(data, WEIGHTS, 64, "g.onnx")


def test_a_graph_that_is_none_is_one_line() -> None:
    for data in (b"\xff" * 9, field(7, b"\xff"), field(7, field(5, tensor("x")[:-3]))):
        with pytest.raises(LvlmError, match=r"^g\.onnx is not an ONNX file"):
            check_external(data, WEIGHTS, 64, "g.onnx")
