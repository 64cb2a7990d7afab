"""``lvlm-export env``: what an issue report needs."""

from __future__ import annotations

import getpass
import json
import platform
import re
from importlib import metadata
from pathlib import Path

import pytest

from command_line import process, typed
from lvlm_export import __version__
from lvlm_export.cli.commands import env


def test_it_says_versions_machine_and_what_runs_graphs() -> None:
    found = json.loads(typed("env", "--json").stdout)
    assert found["version"] == __version__
    assert found["python"] == platform.python_version()
    assert found["cores"] >= 1
    assert set(found["backends"]) == {"onnxruntime", "openvino", "tensorrt"}
    assert "CPUExecutionProvider" in found["providers"]
    assert found["packages"]["numpy"] == metadata.version("numpy")
    assert found["packages"]["onnxruntime"] == metadata.version("onnxruntime")
    assert found["extras"]["cpu"] == []
    assert "dev" not in found["extras"]


def test_lines_say_the_same_and_nothing_of_a_user() -> None:
    shown = process("env")
    assert shown.returncode == 0
    assert shown.stderr == ""
    labels = [line[:13].strip() for line in shown.stdout.splitlines()]
    assert labels == [
        *("lvlm-export", "system", "machine", "gpu", "backends", "providers", "extras"),
        *("missing", "packages"),
    ]
    assert f"{__version__}, cpython {platform.python_version()}" in shown.stdout
    words = re.findall(r"[\w./-]+", shown.stdout)
    assert not {platform.node(), getpass.getuser()} & set(words)
    assert f"{Path.home()}/" not in shown.stdout


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    required = [
        "numpy>=1.26",
        "absent>=1; extra == 'rtx'",
        "Pillow; python_version >= '3.10' and extra == 'rtx'",
        "numpy; extra == 'cpu'",
        "pytest; extra == 'test'",
        "lvlm-export[test]; extra == 'dev'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    assert env.extras() == {"rtx": ["absent"], "cpu": []}
    packages = env.packages()
    assert "absent" not in packages
    assert "pytest" not in packages
    assert packages["Pillow"] == metadata.version("Pillow")


def test_a_checkout_that_is_not_installed_says_what_runs_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    assert env.extras() == {}
    assert env.packages()["onnxruntime"] == metadata.version("onnxruntime")
