"""Budgets added to a finished bundle and taken from it: what a build with those ratios makes, in seconds."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

import tiny
from command_line import PICTURE, error_line, typed
from helpers import Silent, build_tiny
from lvlm_export.bundle import budgets
from lvlm_export.bundle import build as building
from lvlm_export.bundle.budgets import changed_ratios
from lvlm_export.bundle.build import change_ratios
from lvlm_export.checkpoint.checkpoint import Checkpoint
from lvlm_export.plan.plan import BuildOptions
from lvlm_runtime.bundle.bundle import WEIGHTS, Bundle, read_manifest
from lvlm_runtime.errors import LvlmError, UsageError
from lvlm_runtime.golden import FILE as GOLDEN
from lvlm_runtime.session import Session


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llava(tmp_path_factory.mktemp("model") / "checkpoint", seed=3)


@pytest.fixture(scope="module")
def half(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of 0.5 and 1.0 that passed the gate; read only."""
    output = tmp_path_factory.mktemp("bundle") / "bundle"
    opened, options = Checkpoint.open(checkpoint), BuildOptions((0.5,), method="fastv")
    building.build(opened, str(checkpoint), options, output, Silent())
    return output


@pytest.fixture
def bundle(half: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "bundle"))


def content(directory: Path) -> dict[str, bytes]:
    """Files of a bundle but for the manifest and the order that it has in common with the weights."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", ".verified.json", GOLDEN)
    }


def test_an_added_ratio_makes_what_a_build_with_both_makes(
    checkpoint: Path, bundle: Path, tmp_path: Path
) -> None:
    before, progress = read_manifest(bundle), Silent()
    weights, open_session = (bundle / WEIGHTS).stat().st_ino, Session.open(bundle, device="cpu")
    result = change_ratios(Checkpoint.open(checkpoint), bundle, (0.25,), (), progress)

    fresh = build_tiny(checkpoint, tmp_path / "fresh", 0.5, 0.25, method="fastv")
    assert content(bundle) == content(fresh.directory)
    written = dataclasses.asdict(result.manifest)
    expected = dataclasses.asdict(fresh.manifest)
    for each in (written, expected):  # the name, and golden answers, which build_tiny leaves out
        del each["model"], each["files"]
    assert written == expected
    assert result.manifest.content_key != before.content_key
    assert (bundle / WEIGHTS).stat().st_ino == weights, "one copy of the weights, under both names"

    gate = [step for title, step in progress.steps if title == "checking against PyTorch"]
    assert gate == ["ratio 0.25, sample 0"], "what is new is compared, what passed before is not"
    opened = Session.open(bundle, device="cpu")
    assert [budget.ratio for budget in opened.bundle.manifest.budgets] == [0.5, 0.25, 1.0]
    for ratio in (0.5, 1.0):
        answers = [s.generate("What?", [PICTURE], ratio).token_ids for s in (open_session, opened)]
        assert answers[0] == answers[1], "who has the old bundle open goes on"
    golden = typed("verify", bundle, "--golden").stdout
    assert golden.count("tokens equal") == 3


@pytest.mark.slow
def test_the_same_command_again_has_nothing_to_do(checkpoint: Path, bundle: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    assert not change_ratios(opened, bundle, (0.25,), (), Silent()).reused
    assert change_ratios(opened, bundle, (0.25,), (), Silent()).reused


def test_a_removed_ratio_takes_its_reducers_along(checkpoint: Path, bundle: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    before = content(bundle)
    change_ratios(opened, bundle, (0.25,), (), Silent())
    progress = Silent()
    change_ratios(opened, bundle, (), (0.25,), progress)
    assert content(bundle) == before
    assert not [step for title, step in progress.steps if title == "checking against PyTorch"]


@pytest.mark.slow
def test_an_interrupted_change_leaves_the_bundle_and_goes_on(
    checkpoint: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    before = content(bundle)
    with monkeypatch.context() as patch:
        patch.setattr(building, "check_parity", fail)
        with pytest.raises(KeyboardInterrupt):
            change_ratios(Checkpoint.open(checkpoint), bundle, (0.25,), (), Silent())
    assert content(bundle) == before
    Bundle.open(bundle)

    def export(*_: Any, **__: Any) -> None:
        raise AssertionError("everything was exported before")

    monkeypatch.setattr(building, "export_graph", export)
    result = change_ratios(Checkpoint.open(checkpoint), bundle, (0.25,), (), Silent())
    assert [budget.ratio for budget in result.manifest.budgets] == [0.5, 0.25, 1.0]


@pytest.mark.slow
def test_without_hard_links_files_are_copied(
    checkpoint: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    before = (bundle / WEIGHTS).read_bytes()
    monkeypatch.setattr(budgets.os, "link", refuse)
    change_ratios(Checkpoint.open(checkpoint), bundle, (0.25,), (), Silent(), 0)
    assert (bundle / WEIGHTS).read_bytes() == before


def test_weights_that_a_change_adds_go_to_a_copy(tmp_path: Path) -> None:
    """A method that projects with weights of its own may bring tensors that the bundle had not."""
    import torch

    from lvlm_export.bundle.weights import WeightStore

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = WeightStore(tmp_path / "one", None)  # type: ignore[arg-type]
    first.put(torch.ones(3))
    before = first.path.read_bytes()
    (tmp_path / "two" / WEIGHTS).hardlink_to(first.path)
    second = WeightStore(tmp_path / "two", None, first.refs)  # type: ignore[arg-type]
    second.put(torch.ones(3))
    assert second.path.stat().st_nlink == 2, "nothing was written"
    second.put(torch.zeros(5))
    assert first.path.read_bytes() == before
    assert second.path.read_bytes().startswith(before)


@pytest.mark.parametrize(
    ("present", "added", "removed", "expected"),
    [
        ((0.5,), (0.25,), (), (0.5, 0.25)),
        ((1.0,), (0.5,), (), (1.0, 0.5)),
        ((1.0, 0.5), (0.25,), (), (1.0, 0.5, 0.25)),
        ((0.5, 0.25, 1.0), (0.33, 0.33), (0.5,), (0.25, 0.33, 1.0)),
        ((0.5, 1.0), (), (0.4,), (0.5, 1.0)),
    ],
)
def test_order_of_ratios(
    present: tuple[float, ...],
    added: tuple[float, ...],
    removed: tuple[float, ...],
    expected: tuple[float, ...],
) -> None:
    assert changed_ratios(present, added, removed) == expected


def test_what_does_not_fit_is_one_line(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Checkpoint.open(checkpoint)

    def refused(message: str, *ratios: tuple[float, ...], kind: type = UsageError) -> None:
        with pytest.raises(kind, match=message):
            change_ratios(opened, bundle, *ratios, Silent())

    refused(r"0.25 is given to --add-ratio and to --remove-ratio; give it to one", (0.25,), (0.25,))
    refused(r"no ratio would be left of 0.5, 1; leave one, or remove", (), (0.5, 1.0))
    missing = tmp_path / "missing"
    with pytest.raises(LvlmError, match=r"missing holds no whole bundle whose ratios could change"):
        change_ratios(opened, missing, (0.25,), (), Silent())
    other = tiny.llava(tmp_path / "other", seed=4)
    with pytest.raises(
        LvlmError, match=r"was not built from the checkpoint in .*other: its content"
    ):
        change_ratios(Checkpoint.open(other), bundle, (0.25,), (), Silent())
    with monkeypatch.context() as patch:
        patch.setattr("lvlm_export.plan.versions.source_key", lambda: "another")
        refused(r"built by another version, whose files are not mixed", (0.25,), (), kind=LvlmError)
    (bundle / WEIGHTS).write_bytes(b"x")
    refused(r"holds no whole bundle whose ratios could change", (0.25,), (), kind=LvlmError)


@pytest.mark.slow
def test_ratios_that_cut_the_model_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    """A ratio of vtw is a layer: another one is another cut."""
    built = build_tiny(checkpoint, tmp_path / "bundle", 0.5, method="vtw").directory
    with pytest.raises(UsageError, match=r"method vtw cuts the model elsewhere with these ratios"):
        change_ratios(Checkpoint.open(checkpoint), built, (0.25,), (), Silent(), 0)


def test_as_a_user_types_it(bundle: Path) -> None:
    line = error_line(typed("run", bundle, "--ratio", "0.25", "--image", PICTURE, "A"), 2)
    command = line.partition("add it with `")[2].partition("`")[0].split()
    assert command == ["lvlm-export", "build", "-o", str(bundle), "--add-ratio", "0.25"]
    (bundle / "engines").mkdir()
    done = typed(*command[1:])
    assert "0.25" in done.stdout
    assert "note    engines of the bundle before are gone" in done.stderr
    refused = error_line(typed(*command[1:], "--method", "tome"), 2)
    assert "take all else from the bundle; leave out --method, or build a new bundle" in refused
