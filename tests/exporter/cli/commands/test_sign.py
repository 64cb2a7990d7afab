"""``lvlm-export sign``, ``verify-signature`` and ``run --require-signature``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from command_line import PICTURE, QUESTION, error_line, typed
from fake_tensorrt import write_engines
from keys import KEY, LINE
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.engines.limits import Limits

pytest.importorskip("cryptography", reason="signatures need the extra `sign`")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY, encoding="utf-8")
    return path


def test_a_bundle_is_signed_verified_and_asked(damaged_bundle: Path, key: Path) -> None:
    unsigned = typed("run", damaged_bundle, QUESTION, "--require-signature", LINE)
    assert "manifest.json is not signed" in error_line(unsigned, 1)
    done = typed("sign", damaged_bundle, "--key", key, "--comment", "fleet 7")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"public key  {LINE}"
    done = typed("verify-signature", damaged_bundle, "--key", LINE)
    assert done.stdout.startswith("PASS  "), done.stderr
    assert done.stdout.splitlines()[1] == "fleet 7"
    words = ("--image", PICTURE, "--max-new-tokens", "2", "--require-signature", LINE)
    assert typed("run", damaged_bundle, QUESTION, *words).exit_code == 0


def test_a_damaged_bundle_is_not_signed(damaged_bundle: Path, key: Path) -> None:
    (damaged_bundle / "assemble.onnx").write_bytes(b"x")
    assert "assemble.onnx has 1 bytes" in error_line(typed("sign", damaged_bundle, "--key", key), 1)
    assert not list(damaged_bundle.glob("*.minisig"))


def test_a_comment_is_one_line(damaged_bundle: Path, key: Path) -> None:
    result = typed("sign", damaged_bundle, "--key", key, "--comment", "a\nb")
    assert "--comment takes one line of printable text" in error_line(result, 2)


def test_engines_are_signed_with_their_record(demo_bundle: Path, tmp_path: Path, key: Path) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    typed("sign", bundle, "--key", key)
    record = write_engines(Bundle.open(bundle), Limits(100, 40, 2))
    unsigned = typed("verify-signature", bundle, "--key", LINE)
    assert "the engines for rtx in" in error_line(unsigned, 1)
    assert "are not signed; sign them with `lvlm-export sign`, or give" in error_line(unsigned, 1)
    done = typed("verify-signature", bundle, "--key", LINE, "--without-engines")
    assert done.exit_code == 0
    assert "signed, every file that its manifest lists" in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[-1] == "engines for rtx were not verified"
    typed("sign", bundle, "--key", key)
    done = typed("verify-signature", bundle, "--key", LINE)
    assert done.stdout.splitlines()[-1] == "PASS  engines for rtx"
    signature = bundle / "engines" / "rtx" / "record.json.minisig"
    signature.rename(tmp_path / signature.name)
    result = typed("verify-signature", bundle, "--key", LINE)
    assert "are not signed" in error_line(result, 1), "who removes the signature gains nothing"
    (tmp_path / signature.name).rename(signature)
    engine = bundle / "engines" / "rtx" / next(iter(record.engines.values())).file
    engine.write_bytes(b"another")
    result = typed("verify-signature", bundle, "--key", LINE)
    assert "is damaged: its SHA-256 is not the record's" in error_line(result, 1)
