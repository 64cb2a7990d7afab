"""A build that dies leaves no half bundle, and the same command continues where it stopped."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from command_line import PICTURE, QUESTION, error_line, typed
from helpers import IN_BOTH
from lvlm_export.bundle.construction import LOCK, directory_of
from lvlm_export.bundle.weights import WeightStore
from lvlm_export.check import parity
from lvlm_runtime.bundle.bundle import read_manifest

# Small: no baseline, no gate; 8 graphs.
OPTIONS = ("--ratio", "0.5", "--method", IN_BOTH, "--no-baseline", "--no-verify")
# Smallest: no reducers at all; 4 graphs and 600 kB of weights.
UNREDUCED = ("--ratio", "1", "--no-verify")


def start(*words: str | Path) -> subprocess.Popen[str]:
    """A command line in a process that can be killed."""
    command = [sys.executable, "-m", "lvlm_export", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read progress until a line holds ``text``."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"the process ended without a line of {text!r}")


def identity(path: Path) -> tuple[int, int]:
    """What changes when a file is written again."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def test_a_killed_build_resumes_without_doing_anything_twice(
    tiny_llava: Path, tmp_path: Path
) -> None:
    target = tmp_path / "bundle"
    building = directory_of(target)
    words = ("build", "--model", tiny_llava / "checkpoint", *OPTIONS, "-o", target)
    process = start(*words)
    wait_for(process, "3 of ")
    time.sleep(1)  # somewhere inside the next graph
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    # No command accepts the unfinished directory as a bundle.
    assert "is not a bundle" in error_line(typed("run", building, "--image", PICTURE, QUESTION), 1)
    building = building / "bundle"
    finished = {
        name: identity(building / name)
        for name in ("vision.0.onnx", "vision.1.onnx", "decoder.0.onnx")
    }
    result = typed(*words)
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert not (target / LOCK).exists()
    assert {name: identity(target / name) for name in finished} == finished
    # The result is the same as that of a build that was never interrupted.
    files, whole = read_manifest(target).files, read_manifest(tiny_llava / "bundle").files
    assert {name for name in files if name in whole and files[name] != whole[name]} == set()
    assert typed("run", target, "--image", PICTURE, QUESTION).exit_code == 0


def test_a_second_build_of_the_same_bundle_is_refused(tiny_llava: Path, tmp_path: Path) -> None:
    """Also one of other options. A build that died holds nothing, as the test above shows."""
    target = tmp_path / "bundle"
    model = ("--model", tiny_llava / "checkpoint")
    process = start("build", *model, *OPTIONS, "-o", target)
    wait_for(process, "1 of ")
    process.send_signal(signal.SIGSTOP)  # so that it is certainly still running
    for options in (OPTIONS, ("--method", "none", "--ratio", "1")):
        line = error_line(typed("build", *model, *options, "-o", target), 1)
        assert "another build is writing" in line
        assert "wait for it, or choose another --output" in line
    process.kill()
    process.wait()
    assert (directory_of(target) / LOCK).exists()
    assert not target.exists()


def test_ctrl_c_is_one_line_and_status_130(tmp_path: Path) -> None:
    process = start("build", *OPTIONS, "-o", tmp_path / "bundle")
    wait_for(process, "loading PyTorch")
    time.sleep(0.5)  # inside the import of torch
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr.strip() == "interrupted; type the same command to continue"
    assert not (tmp_path / "bundle").exists()


def test_an_interrupt_that_a_library_turns_into_an_error_is_still_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lvlm_runtime.bundle import bundle

    def interrupted(_directory: object, **_options: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("a library failed to load") from None

    monkeypatch.setattr(bundle.Bundle, "open", interrupted)
    result = typed("inspect", "bundle")
    assert result.exit_code == 130
    assert result.stderr == "interrupted; type the same command to continue\n"


def test_a_chain_that_is_not_the_model_is_not_published(
    tiny_llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    words = ("build", "--model", tiny_llava / "checkpoint", "--ratio", "1", "-o", target)
    with monkeypatch.context() as patched:
        patched.setattr(parity, "LIMITS", {"float32": 0.0})
        line = error_line(typed(*words), 1)
    assert "the exported chain is not the model" in line
    assert "nothing was published" in line
    assert not target.exists()


def test_a_write_that_fails_names_the_place_and_the_way_out(
    tiny_llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    words = ("build", "--model", tiny_llava / "checkpoint", *UNREDUCED, "-o", target)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(WeightStore, "put", full)
    line = error_line(typed(*words), 1)
    assert line == (
        f"error: {target}: the disk is full; free some space and type the same command again, a"
        " build continues where it stopped"
    )
    assert not target.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 400 kB, where mounting is permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a tmpfs is not permitted here; the patched write above stands in")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk(tiny_llava: Path, small_disk: Path) -> None:
    target = small_disk / "bundle"
    words = ("build", "--model", tiny_llava / "checkpoint", *UNREDUCED, "-o", target)
    line = error_line(typed(*words), 1)
    assert f"{target}: the disk is full; free some space and type the same command again" in line
    assert not target.exists()
    # With more space the same command continues from what was finished.
    finished = identity(directory_of(target) / "bundle" / "vision.0.onnx")
    resize = ["mount", "-o", "remount,size=8m", str(small_disk)]
    subprocess.run(resize, check=True, capture_output=True)
    result = typed(*words)
    assert result.exit_code == 0, result.stderr
    assert identity(target / "vision.0.onnx") == finished
    assert typed("run", target, "--image", PICTURE, QUESTION).exit_code == 0


def test_weights_are_written_whole(tmp_path: Path) -> None:
    import torch

    class Source:
        def tensor(self, name: str) -> torch.Tensor:
            raise AssertionError(name)

    store = WeightStore(tmp_path, Source())
    tensors = [
        torch.tensor(3.5),
        torch.arange(6.0).reshape(2, 3).t(),
        torch.zeros(0),
        torch.ones(2, dtype=torch.float16),
    ]
    for tensor in tensors:
        ref = store.put(tensor)
        data = np.memmap(tmp_path / "weights.bin", np.uint8, "r")[
            ref.offset : ref.offset + ref.size_bytes
        ]
        assert data.tobytes() == tensor.contiguous().numpy().tobytes()
