"""The Jetson scripts as far as a PC can: arguments, versions from faked files, faked tools."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

JETSON = Path(__file__).resolve().parents[2] / "jetson"
SCRIPTS = ("install.sh", "power.sh", "acceptance.sh")
R36 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\nTARGET=1\n"
R38 = "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64\n"


def tool(directory: Path, name: str, body: str) -> Path:
    """A faked program."""
    path = directory / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def jetson(tmp_path: Path) -> dict[str, str]:
    """The environment of a faked JetPack 6 with TensorRT 10.3."""
    release = tmp_path / "nv_tegra_release"
    release.write_text(R36, encoding="utf-8")
    tools = tmp_path / "bin"
    tools.mkdir()
    real = shutil.which("python3")
    body = f'[[ "$*" != *tensorrt.__version__* ]] || {{ echo 10.3.0; exit 0; }}\nexec {real} "$@"'
    python = tool(tools, "python3", body)
    return {
        "LVLM_RELEASE_FILE": str(release),
        "LVLM_PYTHON": str(python),
        "LVLM_POWER_STATE": str(tmp_path / "state"),
        "PATH": f"{tools}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "FAKES": str(tmp_path),
    }


def call(environment: dict[str, str], script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(JETSON / script), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_scripts_are_shellcheck_clean() -> None:
    files = [str(path) for path in sorted(JETSON.glob("*.sh"))]
    # Of the environment, which need not be on the PATH.
    shellcheck = str(Path(sys.executable).with_name("shellcheck"))
    command = [shellcheck, "-x", "-P", str(JETSON), *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_unknown_arguments(jetson: dict[str, str], script: str) -> None:
    result = call(jetson, script, "--help")
    assert result.returncode == 0
    assert f"./{script}" in result.stdout
    wrong = call(jetson, script, "--colour")
    assert wrong.returncode == 2
    [line] = wrong.stderr.splitlines()
    assert line.startswith("error: ")


def test_install_detects_jetpack_and_installs_no_torch(jetson: dict[str, str]) -> None:
    result = call(jetson, "install.sh", "--dry-run", "--venv", "/opt/x")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:2] == ["Jetson Linux R36.4.3, JetPack 6", "TensorRT 10.3.0"]
    assert "torch" not in result.stdout
    assert "onnxruntime" not in result.stdout
    assert lines[3] == (
        "would run: /opt/x/bin/pip install --disable-pip-version-check"
        f" {JETSON.parent} cuda-bindings>=12.8,<13 ml_dtypes>=0.5"
    )
    wide = call(jetson, "install.sh", "--dry-run", "--with-onnxruntime").stdout
    assert f"{JETSON.parent}[cpu] cuda-bindings>=12.8,<13" in wide
    Path(jetson["LVLM_RELEASE_FILE"]).write_text(R38, encoding="utf-8")
    newer = call(jetson, "install.sh", "--dry-run").stdout
    assert "R38.2.0, JetPack 7" in newer
    assert "cuda-bindings>=13,<14" in newer


def installing(jetson: dict[str, str]) -> Path:
    """A Python that makes an environment of one command; returns the home directory."""
    python = Path(jetson["LVLM_PYTHON"])
    body = """
        if [[ "$*" == *venv* ]]; then
          mkdir -p "${!#}/bin"; echo 'echo "$*" >>"$FAKES/pip"' >"${!#}/bin/pip"
          echo 'echo "$*"' >"${!#}/bin/lvlm-export"; chmod +x "${!#}"/bin/*; exit
        fi
        [[ "$*" != *tensorrt.__version__* ]] || echo 10.3.0
    """
    tool(python.parent, python.name, body)
    return Path(jetson["HOME"])


def test_install_puts_the_command_on_the_path_or_says_how(jetson: dict[str, str]) -> None:
    home = installing(jetson)
    result = call(jetson, "install.sh")
    assert result.returncode == 0, result.stderr
    link = home / ".local" / "bin" / "lvlm-export"
    assert link.resolve() == home / "lvlm-export" / "bin" / "lvlm-export"
    assert f'type: export PATH="{link.parent}:$PATH"' in result.stdout
    assert "next: ~/.local/bin/lvlm-export engines BUNDLE" in result.stdout
    again = {**jetson, "PATH": f"{link.parent}:{jetson['PATH']}"}
    assert "is not on the PATH" not in call(again, "install.sh", "--venv", str(home / "b")).stdout
    assert link.resolve() == home / "b" / "bin" / "lvlm-export"
    link.unlink()
    link.write_text("mine", encoding="utf-8")
    assert f"{link} is something else and stays" in call(jetson, "install.sh").stdout
    assert link.read_text(encoding="utf-8") == "mine"


def test_install_writes_the_unit_with_the_paths_that_it_made(
    jetson: dict[str, str], tmp_path: Path
) -> None:
    home = installing(jetson)
    tools = Path(jetson["LVLM_PYTHON"]).parent
    tool(tools, "sudo", '"$@"')
    tool(tools, "systemctl", 'echo "$*" >>"$FAKES/systemctl"')
    units, settings = tmp_path / "units", tmp_path / "lvlm.conf"
    units.mkdir()
    places = {**jetson, "LVLM_UNITS": str(units), "LVLM_SETTINGS": str(settings)}
    words = ("--service", "orin_nano_8gb", "--bundles", str(tmp_path / "kept"))
    result = call(places, "install.sh", *words)
    assert result.returncode == 0, result.stderr
    unit = (units / "lvlm-export-engines@.service").read_text(encoding="utf-8")
    assert f"ExecStart={home}/lvlm-export/bin/lvlm-export engines {tmp_path}/kept/%I" in unit
    assert f"ConditionPathExists={tmp_path}/kept/%I/manifest.json" in unit
    assert f"EnvironmentFile={settings}" in unit
    # Root runs nothing that this user can change.
    assert f"User={getpass.getuser()}" in unit.splitlines()
    assert "/opt/" not in unit
    assert settings.read_text(encoding="utf-8") == "DEVICE=orin_nano_8gb\n"
    assert (tmp_path / "systemctl").read_text(encoding="utf-8") == "daemon-reload\n"
    assert f"for the bundle {tmp_path}/kept/NAME: sudo systemctl enable" in result.stdout
    refused = call(places, "install.sh", "--service", "a b")
    assert refused.returncode == 2
    assert "a b cannot stand in a unit" in refused.stderr
    dry = call(places, "install.sh", "--dry-run", *words).stdout
    assert f"would write: {units}/lvlm-export-engines@.service" in dry


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# R35 (release), REVISION: 4.1, GCID: 1\n", "Jetson Linux R35 is not known"),
        ("nonsense\n", "does not begin with a release line: nonsense"),
        (None, "this is no Jetson"),
    ],
)
def test_install_refuses_what_it_does_not_know(
    jetson: dict[str, str], content: str | None, message: str
) -> None:
    release = Path(jetson["LVLM_RELEASE_FILE"])
    if content is None:
        release.unlink()
    else:
        release.write_text(content, encoding="utf-8")
    result = call(jetson, "install.sh", "--dry-run")
    assert result.returncode == 1
    assert message in result.stderr
    assert "would run" not in result.stdout


def test_install_names_a_missing_tensorrt(jetson: dict[str, str]) -> None:
    tool(Path(jetson["LVLM_PYTHON"]).parent, "python3", '[[ "$*" != *tensorrt* ]]')
    result = call(jetson, "install.sh", "--dry-run")
    assert result.returncode == 1
    assert "TensorRT's Python module is missing" in result.stderr


def power_tools(jetson: dict[str, str]) -> Path:
    """Faked ``nvpmodel`` and ``jetson_clocks``, and where they note what they are told."""
    fakes = Path(jetson["FAKES"])
    (fakes / "mode").write_text("1\n", encoding="utf-8")
    tools = Path(jetson["LVLM_PYTHON"]).parent
    body = (
        'if [[ $1 == -q ]]; then echo "NV Power Mode: X"; cat "$FAKES/mode";'
        ' else echo "$2" >"$FAKES/mode"; fi'
    )
    tool(tools, "nvpmodel", body)
    tool(tools, "jetson_clocks", 'echo "$*" >>"$FAKES/clocks"; [[ $1 != --store ]] || touch "$2"')
    return fakes


def test_power_remembers_and_restores(jetson: dict[str, str]) -> None:
    fakes = power_tools(jetson)
    assert call(jetson, "power.sh", "restore").returncode == 1
    result = call(jetson, "power.sh", "set", "0")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "mode 0, clocks locked; before it was 1\n"
    assert Path(jetson["LVLM_POWER_STATE"]).stat().st_mode & 0o777 == 0o700
    assert "restore" in call(jetson, "power.sh", "set", "2").stderr
    assert call(jetson, "power.sh", "restore").stdout == "mode 1\n"
    assert (fakes / "mode").read_text(encoding="utf-8") == "1\n"
    calls = (fakes / "clocks").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] if line else "lock" for line in calls] == [
        "--store",
        "lock",
        "--restore",
    ]
    assert not Path(jetson["LVLM_POWER_STATE"]).exists()


def test_power_believes_no_directory_that_somebody_else_may_have_made(
    jetson: dict[str, str], tmp_path: Path
) -> None:
    """As root it would set the mode and the clocks that are written there."""
    fakes = power_tools(jetson)
    state = Path(jetson["LVLM_POWER_STATE"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "mode").write_text("7\n", encoding="utf-8")
    state.symlink_to(elsewhere)
    assert "is no directory" in call(jetson, "power.sh", "restore").stderr
    assert "exists" in call(jetson, "power.sh", "set", "0").stderr
    state.unlink()
    state.symlink_to(tmp_path / "absent")
    assert "exists" in call(jetson, "power.sh", "set", "0").stderr
    state.unlink()
    elsewhere.rename(state)
    state.chmod(0o755)
    line = call(jetson, "power.sh", "restore").stderr
    assert f"with rights 755; it must be user {os.geteuid()}'s, with rights 700" in line
    state.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(state, 12345, -1)
        assert "belongs to user 12345" in call(jetson, "power.sh", "restore").stderr
        os.chown(state, 0, -1)
    (state / "mode").write_text("0; reboot\n", encoding="utf-8")
    assert "holds no number of a mode" in call(jetson, "power.sh", "restore").stderr
    assert (fakes / "mode").read_text(encoding="utf-8") == "1\n"
    assert not (fakes / "clocks").exists()


def test_power_changes_nothing_where_the_clocks_cannot_be_kept(jetson: dict[str, str]) -> None:
    fakes = power_tools(jetson)
    tool(Path(jetson["LVLM_PYTHON"]).parent, "jetson_clocks", "exit 1")
    assert "nothing was changed" in call(jetson, "power.sh", "set", "0").stderr
    assert (fakes / "mode").read_text(encoding="utf-8") == "1\n"
    assert not Path(jetson["LVLM_POWER_STATE"]).exists()


def test_power_keeps_its_state_where_only_root_writes() -> None:
    text = (JETSON / "power.sh").read_text(encoding="utf-8")
    assert "STATE=${LVLM_POWER_STATE:-/var/lib/" in text
    for script in JETSON.glob("*.sh"):
        assert "/tmp" not in script.read_text(encoding="utf-8")


def test_power_names_a_missing_tool(jetson: dict[str, str]) -> None:
    result = call(jetson, "power.sh", "show")
    assert result.returncode == 1
    assert "nvpmodel is not there" in result.stderr
    assert call(jetson, "power.sh", "set", "fast").returncode == 2


def to_accept(jetson: dict[str, str], tmp_path: Path) -> Path:
    """A bundle whose every step succeeds on a faked device, but for the operator gate."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}", encoding="utf-8")
    tools = Path(jetson["LVLM_PYTHON"]).parent
    body = """
        echo "$*" >>"$FAKES/calls"
        if [[ $1 == check ]]; then echo "error: refused" >&2; exit 1; fi
        if [[ $1 == profile ]]; then mkdir "${!#}"; echo '{"ratios": []}' >"${!#}/report.json"; fi
        echo "{}"
    """
    tool(tools, "lvlm-export", body)
    tool(tools, "nvpmodel", 'echo "NV Power Mode: 15W"; echo 0')
    return bundle


@pytest.mark.parametrize("kind", ["pipe", "file", "link"])
def test_acceptance_writes_where_it_is_told(
    jetson: dict[str, str], tmp_path: Path, kind: str
) -> None:
    bundle, place = to_accept(jetson, tmp_path), tmp_path / "place"
    place.mkdir()
    report, words = place / "report.json", ("--device", "x", "--compute-capability", "sm87")
    # Somebody else's file, or a trap, under the name that was once foreseeable.
    trap = place / ".report.json.part"
    trap.symlink_to(tmp_path / "victim")
    report.write_text("old", encoding="utf-8")
    report.chmod(0o640)
    output = report
    if kind == "link":
        output = tmp_path / "link"
        output.symlink_to(report)
    name = "/dev/stdout" if kind == "pipe" else str(output)
    result = call(jetson, "acceptance.sh", str(bundle), *words, "--output", name)
    assert result.returncode == 1, result.stderr
    if kind == "pipe":
        assert json.loads(result.stdout)["profile"] == {"ratios": []}
        assert report.read_text(encoding="utf-8") == "old"
    else:
        assert json.loads(report.read_text(encoding="utf-8"))["profile"] == {"ratios": []}
    assert report.stat().st_mode & 0o777 == 0o640
    assert output.is_symlink() == (kind == "link")
    assert sorted(place.iterdir()) == [trap, report]
    assert not (tmp_path / "victim").exists()


def test_acceptance_leaves_no_temporary(jetson: dict[str, str], tmp_path: Path) -> None:
    bundle, place = to_accept(jetson, tmp_path), tmp_path / "place"
    place.mkdir()
    python = Path(jetson["LVLM_PYTHON"])
    body = python.read_text(encoding="utf-8").replace(
        "exec ", "[[ $* != *R36.4.3* ]] || exit 7\nexec "
    )
    python.write_text(body, encoding="utf-8")
    words = ("--device", "x", "--compute-capability", "sm87", "--output", str(place / "a.json"))
    assert call(jetson, "acceptance.sh", str(bundle), *words).returncode == 7
    assert list(place.iterdir()) == []


def test_acceptance_reports_every_step(jetson: dict[str, str], tmp_path: Path) -> None:
    bundle, report = to_accept(jetson, tmp_path), tmp_path / "report.json"
    words = ("--device", "orin_nano_8gb", "--compute-capability", "sm87", "--output", str(report))
    words += ("--iterations", "3")
    result = call(jetson, "acceptance.sh", str(bundle), *words)
    assert result.returncode == 1
    assert "check: lvlm-export check" in result.stdout
    assert "--target trt-10.3" in result.stdout
    content = json.loads(report.read_text(encoding="utf-8"))
    assert content["jetson_linux"] == "R36.4.3"
    assert {name: step["status"] for name, step in content["steps"].items()} == {
        "power": 0,
        "inspect": 0,
        "check": 1,
        "engines": 0,
        "golden": 0,
        "profile": 0,
    }
    assert content["steps"]["power"]["output"] == "NV Power Mode: 15W\n0\n"
    assert content["profile"] == {"ratios": []}
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert calls[3] == f"verify {bundle} --golden --backend tensorrt --json"
    assert calls[4].startswith(f"profile {bundle} --backend tensorrt --iterations 3 -o ")
    assert content["steps"]["check"]["errors"] == "error: refused\n"


def test_acceptance_wants_bundle_and_device(jetson: dict[str, str], tmp_path: Path) -> None:
    assert "name the bundle" in call(jetson, "acceptance.sh").stderr
    assert "name the device" in call(jetson, "acceptance.sh", str(tmp_path)).stderr
    many = (str(tmp_path), "--device", "x", "--compute-capability", "sm87", "--iterations", "few")
    assert "--iterations few is no count" in call(jetson, "acceptance.sh", *many).stderr
    words = (str(tmp_path), "--device", "x", "--compute-capability", "sm87")
    assert "is not a bundle" in call(jetson, "acceptance.sh", *words).stderr


def test_acceptance_finds_what_install_made(jetson: dict[str, str], tmp_path: Path) -> None:
    bundle = to_accept(jetson, tmp_path)
    found = Path(jetson["LVLM_PYTHON"]).parent / "lvlm-export"
    words = (str(bundle), "--device", "orin_nano_8gb", "--output", str(tmp_path / "a.json"))
    made = tmp_path / "lvlm-export" / "bin"
    made.mkdir(parents=True)
    found.rename(made / "lvlm-export")
    result = call(jetson, "acceptance.sh", *words)
    assert f"inspect: {made}/lvlm-export inspect {bundle} --json" in result.stdout
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert calls[2] == f"engines {bundle} --device orin_nano_8gb --json"
    (made / "lvlm-export").unlink()
    missing = call(jetson, "acceptance.sh", *words)
    assert missing.returncode == 1
    assert "is not there; run install.sh, or name the command, LVLM_EXPORT=" in missing.stderr
