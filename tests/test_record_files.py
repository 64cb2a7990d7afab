"""Every file that is read strictly: a round trip, and for a damaged one what to do about it."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm_export.bundle.construction import JOURNAL, directory_of, open_construction
from lvlm_export.bundle.workspace import Journal, file_ref
from lvlm_export.study.answers import Answer, AnswerFile
from lvlm_profiles import records
from lvlm_profiles.devices.device import Device
from lvlm_profiles.report import Report
from lvlm_profiles.shapes.presets import Preset
from lvlm_runtime.bundle.bundle import MANIFEST, Bundle, manifest_text, read_manifest
from lvlm_runtime.bundle.manifest import SCHEMA, Manifest
from lvlm_runtime.engines import record as engine_record
from lvlm_runtime.engines.record import EngineRecord, read_record, write_record
from lvlm_runtime.errors import LvlmError
from lvlm_runtime.golden import FILE as GOLDEN
from lvlm_runtime.golden import Golden, read_golden, write_golden
from smallest import smallest

KINDS = [Manifest, EngineRecord, Report, Golden, Journal, Device, Preset, Answer]
LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(1 << 63), (1 << 63) - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=5),
    bool: st.booleans(),
    Any: st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=3,
    ),
}


def any_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type as the reader understands it, stated again and apart from it."""
    if kind in LEAVES:
        return LEAVES[kind]
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{name: any_of(hint) for name, hint in hints.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(any_of(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(any_of, arguments))
    if origin is dict:
        return st.dictionaries(st.text(max_size=3), any_of(arguments[1]), max_size=2)
    assert origin in (typing.Union, types.UnionType), kind
    return st.one_of(st.none(), *(any_of(each) for each in arguments if each is not type(None)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back(kind: Any) -> None:
    @settings(max_examples=20, deadline=None)
    @given(any_of(kind))
    def check(value: Any) -> None:
        text = json.dumps(dataclasses.asdict(value))
        assert records.read(kind, json.loads(text), "file.json", "mend it") == value

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_no_entry_can_be_left_out_or_be_of_another_type(kind: Any) -> None:
    content = json.loads(json.dumps(dataclasses.asdict(smallest(kind))))
    for name in content:
        less = {key: value for key, value in content.items() if key != name}
        with pytest.raises(LvlmError, match=f"the known entries, got no '{name}'; mend it"):
            records.read(kind, less, "file.json", "mend it")
        with pytest.raises(LvlmError, match=rf"^file\.json, {name}: expected .*; mend it$"):
            records.read(kind, {**content, name: b"?"}, "file.json", "mend it")


def manifest(**changes: Any) -> Manifest:
    """The smallest there can be."""
    return dataclasses.replace(smallest(Manifest), schema=SCHEMA, **changes)


def damage(path: Path, *keys: str) -> None:
    """Put a word where something else belongs."""
    content = json.loads(path.read_text(encoding="utf-8"))
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = "two"
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_damaged_manifest_says_to_copy_or_build_the_bundle_again(tmp_path: Path) -> None:
    text = manifest_text(dataclasses.replace(manifest(), seed="two"))  # type: ignore[arg-type]
    (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(
        LvlmError,
        match=r"manifest\.json, seed: expected int, got 'two'; copy the bundle again or build it",
    ):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("{", encoding="utf-8")
    with pytest.raises(LvlmError, match=r"is damaged: it is no JSON .*; copy the bundle again or"):
        read_manifest(tmp_path)


def test_a_damaged_engine_record_says_how_to_build_the_engines(tmp_path: Path) -> None:
    record = dataclasses.replace(smallest(EngineRecord), schema=engine_record.SCHEMA, target="rtx")
    path = engine_record.directory_of(tmp_path, "rtx") / engine_record.RECORD
    path.parent.mkdir(parents=True)
    write_record(tmp_path, record)
    assert read_record(tmp_path, "rtx") == record
    remedy = f"; build them: lvlm-export engines {tmp_path} --target rtx"
    damage(path, "limits", "images")
    with pytest.raises(LvlmError) as refused:
        read_record(tmp_path, "rtx")
    assert str(refused.value) == f"{path}, limits.images: expected int, got 'two'{remedy}"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(LvlmError, match=r"record\.json is damaged: it is no JSON") as refused:
        read_record(tmp_path, "rtx")
    assert str(refused.value).endswith(remedy)
    path.unlink()
    assert read_record(tmp_path, "rtx") is None


def test_damaged_golden_answers_say_to_build_with_the_gate(tmp_path: Path) -> None:
    golden = smallest(Golden)
    write_golden(tmp_path, golden)
    bundle = listing(tmp_path)
    assert read_golden(bundle) == golden
    remedy = r"; copy the bundle again, or build the bundle again, without --no-verify$"
    damage(tmp_path / GOLDEN, "max_new_tokens")
    with pytest.raises(
        LvlmError, match=r"golden\.json has \d+ bytes instead of \d+; copy the bundle"
    ):
        read_golden(bundle)
    # As a build would list it.
    with pytest.raises(LvlmError, match=f"golden.json, max_new_tokens: expected int.*{remedy}"):
        read_golden(listing(tmp_path))
    (tmp_path / GOLDEN).write_text("", encoding="utf-8")
    with pytest.raises(LvlmError, match=f"golden.json is damaged: it is no JSON.*{remedy}"):
        read_golden(listing(tmp_path))


def listing(directory: Path) -> Bundle:
    """A bundle whose manifest lists the golden answers as they are now."""
    return Bundle(directory, manifest(files={GOLDEN: file_ref(directory / GOLDEN)}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"journal\.json is damaged: it is no JSON \(.*\)"),
        ("[]", r"journal\.json: expected an object, got \[\]"),
        (
            "{}",
            r"journal\.json: expected exactly the known .* no 'done', no 'key', no 'manifest', no 'tensors'",
        ),
        (
            '{"key": "k", "done": {"a.onnx": {"size_bytes": "two", "sha256": ""}}, "tensors": {},'
            ' "manifest": null}',
            r"journal\.json, done\.a\.onnx\.size_bytes: expected int, got 'two'",
        ),
    ],
)
def test_a_damaged_journal_says_to_remove_what_was_built(
    tmp_path: Path, text: str, message: str
) -> None:
    building = directory_of(tmp_path / "bundle")
    building.mkdir()
    (building / JOURNAL).write_text(text, encoding="utf-8")
    remedy = f"; remove {building} and build the bundle again$"
    refused = pytest.raises(LvlmError, match=message + remedy)
    with refused, open_construction(tmp_path / "bundle") as construction:
        construction.workspace("k")
    assert (building / JOURNAL).read_text(encoding="utf-8") == text


def test_a_build_goes_on_from_its_journal_and_from_no_other(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with open_construction(target) as construction:
        workspace = construction.workspace("k")
        workspace.path("a.onnx").write_bytes(b"graph")
        workspace.finish("a.onnx", {})
        done = workspace.done
        # A process that was killed while it wrote left this.
        (construction.directory / ".journal.json.0011aabb.lvlm-tmp").write_bytes(b"{")
        workspace.path(".golden.json.0011aabb.lvlm-tmp").write_bytes(b"{")
    with open_construction(target) as construction:
        workspace = construction.workspace("k")
        assert workspace.done == done
        assert workspace.is_done("a.onnx")
        assert not list(construction.directory.rglob(".*"))
    # One of another version looks otherwise, and is of another build too.
    (directory_of(target) / JOURNAL).write_text('{"key": "j", "graphs": []}')
    with open_construction(target) as construction:
        workspace = construction.workspace("k")
        assert workspace.done == {}
        assert not workspace.path("a.onnx").exists()


def test_a_damaged_answer_says_which_line_to_delete(tmp_path: Path) -> None:
    path, run = tmp_path / "answers.jsonl", {"content_key": "c"}
    answer = smallest(Answer)
    with AnswerFile(path, run) as file:
        file.append(answer)
    with AnswerFile(path, run) as file:
        assert file.answers == [answer]
    wrong = {**dataclasses.asdict(answer), "right": "yes"}
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(wrong) + "\n")
    with pytest.raises(
        LvlmError,
        match=r"answers\.jsonl:3, right: expected bool, got 'yes'; delete the line, or name another",
    ):
        AnswerFile(path, run)


def test_a_file_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("bread\nmilk, without a line's end", encoding="utf-8")
    with pytest.raises(LvlmError, match="is no file of answers"):
        AnswerFile(path, {})
    assert path.read_text(encoding="utf-8") == "bread\nmilk, without a line's end"
