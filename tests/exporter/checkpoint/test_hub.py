"""Hub ids: what is taken for one, and which commit of it is read and recorded. Nothing is downloaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from command_line import error_line, typed
from lvlm_export.checkpoint.files import Located, locate
from lvlm_export.cli.commands.build import bundle_name
from lvlm_runtime.errors import LvlmError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "owner/name"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub whose every revision is one commit; the calls that it got."""
    calls: list[dict[str, Any]] = []
    snapshot = tmp_path / "cache" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)

    def download(hub_id: str, **options: Any) -> str:
        calls.append({"hub_id": hub_id, **options})
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.mark.parametrize(
    ("model", "revision", "asked"),
    [
        (MODEL, None, "main"),
        (MODEL, "v1.5", "v1.5"),
        (MODEL, "refs/pr/3", "refs/pr/3"),
        (f"{MODEL}@{COMMIT}", None, COMMIT),
    ],
)
def test_the_commit_is_kept_in_the_name(
    hub: list[dict[str, Any]], model: str, revision: str | None, asked: str
) -> None:
    found = locate(model, revision)
    assert found.name == f"{MODEL}@{COMMIT}"
    assert found.directory.name == COMMIT
    [call] = hub
    assert (call["hub_id"], call["revision"]) == (MODEL, asked)
    assert not {"*.bin", "*.pt", "*.py"} & set(call["allow_patterns"])
    # What a manifest names is found again, that commit and no other.
    assert locate(found.name) == found
    assert hub[-1]["revision"] == COMMIT


@pytest.mark.parametrize(
    "model",
    [
        "./checkpoints/lava",
        "checkpoints/",
        "../lava",
        "~/lava",
        "/lava",
        "lava",
        "a/b/c",
        "a b/c",
        "owner/na me",
        "-owner/name",
    ],
)
def test_what_is_no_hub_id_is_never_downloaded(hub: list[dict[str, Any]], model: str) -> None:
    with pytest.raises(LvlmError, match=r"no checkpoint directory at .* give a directory or a hub"):
        locate(model)
    assert hub == []


@pytest.mark.parametrize("lies", ["a directory", "a file", "a link that leads nowhere"])
def test_a_path_with_a_slip_in_it_is_no_hub_id(
    hub: list[dict[str, Any]], tmp_path: Path, lies: str
) -> None:
    here = tmp_path / "checkpoints"
    if lies == "a directory":
        (here / "llava").mkdir(parents=True)
    elif lies == "a file":
        here.write_text("")
    else:
        here.symlink_to("nowhere")
    line = error_line(typed("build", "--model", "checkpoints/lava", "--ratio", "0.5"), 1)
    assert "no checkpoint directory at 'checkpoints/lava', and 'checkpoints' lies here" in line
    assert line.endswith("if it is a hub id, say so with --revision main")
    assert hub == []
    assert locate("checkpoints/lava", "main").name == f"checkpoints/lava@{COMMIT}"


@pytest.mark.parametrize(
    "words",
    [
        ("build", "--ratio", "0.5", "-o", "bundle", "--model"),
        ("plan", "--device", "agx_orin_64gb", "--model"),
        ("choose", "--method", "vtw", "--data", "questions.jsonl", "--model"),
    ],
)
def test_every_command_that_takes_a_model_takes_its_revision(
    hub: list[dict[str, Any]], words: tuple[str, ...]
) -> None:
    error_line(typed(*words, MODEL, "--revision", "v1.5"), 1)  # the snapshot is empty
    assert [call["revision"] for call in hub] == ["v1.5"]
    line = error_line(typed(*words, "demo", "--revision", "v1.5"), 2)
    assert "--revision is for hub ids and the demo model is shipped" in line


def test_a_revision_of_a_directory_or_two_of_them_are_refused(
    hub: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"--revision is for hub ids and .* is a directory"):
        locate(str(tmp_path), "main")
    with pytest.raises(UsageError, match="the model's name is empty; give a directory or a hub id"):
        locate("")
    with pytest.raises(UsageError, match="names a revision and so does --revision"):
        locate(f"{MODEL}@v1", "v2")
    line = error_line(
        typed(
            "plan", "--device", "agx_orin_64gb", "--model", "shape:llava-1.5-7b", "--revision", "a"
        ),
        2,
    )
    assert "--revision is for hub ids and a preset is shipped" in line
    assert hub == []


def test_a_hub_that_gives_nothing_or_no_commit(
    hub: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError("404\nnot found")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(LvlmError, match="the hub did not give its revision main: 404 not found"):
        locate(MODEL)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(LvlmError, match="without saying which commit it is"):
        locate(MODEL)


def test_verify_reads_the_commit_that_the_bundle_was_built_from(
    hub: list[dict[str, Any]], tiny_llava: Path
) -> None:
    from lvlm_export.cli.commands.verify import open_checkpoint
    from lvlm_runtime.bundle.bundle import Bundle

    opened = Bundle.open(tiny_llava / "bundle")
    manifest = dataclasses.replace(opened.manifest, model=f"{MODEL}@{COMMIT}")
    with pytest.raises(LvlmError, match=r"config\.json"):  # the snapshot is empty
        open_checkpoint(dataclasses.replace(opened, manifest=manifest), None, None)
    assert [call["revision"] for call in hub] == [COMMIT]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("demo", "demo"), (f"{MODEL}@{COMMIT}", "name"), ("/models/llava@home", "llava@home")],
)
def test_a_bundle_is_called_as_its_model_without_the_commit(name: str, expected: str) -> None:
    assert bundle_name(Located(Path("x"), name)) == expected
