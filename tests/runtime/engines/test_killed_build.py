"""A build of engines that is killed: the next keeps what is whole and removes what is not."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from kills import KILLED, Process
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.engines import build
from lvlm_runtime.engines.build import EngineSettings, build_engines
from lvlm_runtime.engines.limits import Limits
from lvlm_runtime.engines.plan import plan_engines
from lvlm_runtime.engines.record import directory_of, read_record

SETTINGS = EngineSettings("rtx", Limits(64, 32, 1), ("sm80",))


def test_a_kill_at_every_operation(
    tiny_llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(tiny_llava / "bundle", tmp_path / "bundle")
    bundle = Bundle.open(copied)
    specs = plan_engines(bundle, SETTINGS.limits)[:2]
    library = SimpleNamespace(title="TensorRT-RTX", version="1.7")
    monkeypatch.setattr(build, "open_library", lambda _target: library)
    monkeypatch.setattr(build, "plan_engines", lambda *_: specs)
    monkeypatch.setattr(build, "_machine", lambda: (None, None))
    monkeypatch.setattr(build, "_build", lambda *_: b"engine")

    def run() -> None:
        build_engines(bundle, SETTINGS)

    directory = directory_of(bundle.directory, "rtx")
    whole = {f"{Path(spec.graph).stem}.engine" for spec in specs} | {"record.json"}
    for at in range(1, 100):
        shutil.rmtree(directory.parent, ignore_errors=True)
        status = Process(run, tmp_path / "said", at).wait()
        if status == 0:
            break
        assert status == KILLED
        known = read_record(bundle.directory, "rtx")
        kept = set() if known is None else set(known.engines)
        assert not kept & set(build_engines(bundle, SETTINGS).built)
        assert {path.name for path in directory.iterdir()} == whole
    assert at > 10
    # Also one whose file no build writes any more.
    (directory / ".gone.engine.0011aabb.lvlm-tmp").write_bytes(b"half")
    assert build_engines(bundle, SETTINGS).built == ()
    assert {path.name for path in directory.iterdir()} == whole
