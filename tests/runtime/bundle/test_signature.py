"""Signatures of bundles: minisign's own files, and what is refused before anything is read."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from keys import ENCRYPTED, KEY, LINE, OLD, OTHER, PUBLIC, SIGNED
from lvlm_runtime.bundle import bundle as bundles
from lvlm_runtime.bundle import signature, stamp
from lvlm_runtime.bundle.bundle import Bundle
from lvlm_runtime.bundle.files import MANIFEST, SIGNATURE, STAMP, WEIGHTS
from lvlm_runtime.bundle.signature import (
    PublicKey,
    read_public_key,
    read_secret_key,
    sign_file,
    verify_signature,
)
from lvlm_runtime.errors import LvlmError

pytest.importorskip("cryptography", reason="signatures need the extra `sign`")


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    path = tmp_path / "m.txt"
    path.write_text("hello\n", encoding="utf-8")
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY, encoding="utf-8")
    path.with_suffix(".pub").write_text(PUBLIC, encoding="utf-8")
    return path


def no_password() -> str:
    raise AssertionError("this key has no password")


def beside(path: Path, content: str) -> None:
    path.with_name(f"{path.name}.minisig").write_text(content, encoding="utf-8")


def verified(path: Path, key: str = LINE) -> str:
    return verify_signature(path.read_bytes(), path, read_public_key(key))


def test_minisigns_signature_holds(hello: Path, key: Path) -> None:
    beside(hello, SIGNED)
    assert verified(hello) == "tc here"
    assert str(read_public_key(key.with_suffix(".pub"))) == LINE


def test_ours_is_minisigns_byte_for_byte(hello: Path, key: Path) -> None:
    """Ed25519 draws nothing, so the same words give the same signature."""
    sign_file(hello, read_secret_key(key, no_password), "tc here")
    ours = hello.with_name("m.txt.minisig").read_text(encoding="utf-8").splitlines()
    assert ours[1:] == SIGNED.splitlines()[1:]


@pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign is not installed here")
def test_minisign_takes_ours(hello: Path, key: Path) -> None:
    sign_file(hello, read_secret_key(key, no_password), "from us")
    command = ["minisign", "-V", "-m", str(hello), "-P", LINE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "from us" in done.stdout) == (0, True), done.stderr


@pytest.mark.slow
def test_an_encrypted_key_of_minisign(key: Path) -> None:
    key.write_text(ENCRYPTED, encoding="utf-8")
    assert str(read_secret_key(key, lambda: "hunter2").public) == OTHER
    with pytest.raises(LvlmError, match="the password is wrong"):
        read_secret_key(key, lambda: "hunter3")


def test_a_password_with_small_limits(key: Path) -> None:
    """As above in milliseconds: 16 MB, the lowest that libsodium takes."""
    raw = bytearray(base64.b64decode(KEY.splitlines()[1]))
    inner = bytes(raw[54:126])
    inner += hashlib.blake2b(b"Ed" + inner, digest_size=32).digest()
    salt, n = b"s" * 32, 1 << 10
    stream = hashlib.scrypt(b"pass", salt=salt, n=n, r=8, p=1, maxmem=1 << 26, dklen=104)
    limits = (32768).to_bytes(8, "little") + (1 << 24).to_bytes(8, "little")
    sealed = b"EdScB2" + salt + limits + bytes(a ^ b for a, b in zip(inner, stream, strict=True))
    lines = KEY.splitlines()[0], base64.b64encode(sealed).decode()
    key.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert str(read_secret_key(key, lambda: "pass").public) == LINE
    with pytest.raises(LvlmError, match="the password is wrong; give the right one"):
        read_secret_key(key, lambda: "word")


def swapped(text: str, line: int, new: str) -> str:
    lines = text.splitlines()
    lines[line] = new
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (OLD, r"is of minisign's old kind; sign again with minisign 0\.10 or newer"),
        ("", r"is not a minisign signature: it has not its 4 lines"),
        (SIGNED * 2, r"has not its 4 lines"),
        ("\udcff", r"has not its 4 lines"),
        (swapped(SIGNED, 1, "RURh"), r"is not a minisign signature; sign the bundle again"),
        (swapped(SIGNED, 1, "?" * 100), r"is not a minisign signature; sign the bundle again"),
        (swapped(SIGNED, 2, "tc here"), r"is not a minisign signature; sign the bundle again"),
        (
            swapped(SIGNED, 2, "trusted comment: tc there"),
            r"not what the owner of key 731B793FB8FB",
        ),
        (swapped(SIGNED, 3, "AAAA"), r"not what the owner of key 731B793FB8FB1261 signed"),
    ],
)
def test_a_wrong_signature_is_one_line(hello: Path, content: str, message: str) -> None:
    hello.with_name("m.txt.minisig").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(LvlmError, match=message) as caught:
        verified(hello)
    assert len(str(caught.value).splitlines()) == 1


def test_every_bit_counts(hello: Path) -> None:
    """Of the file, of the signature and of the trusted comment's."""
    for line in (1, 3):
        raw = bytearray(base64.b64decode(SIGNED.splitlines()[line]))
        for at in range(2, len(raw), 7):
            flipped = bytes([*raw[:at], raw[at] ^ 1, *raw[at + 1 :]])
            beside(hello, swapped(SIGNED, line, base64.b64encode(flipped).decode()))
            with pytest.raises(LvlmError, match=r"signed"):
                verified(hello)
    beside(hello, SIGNED)
    hello.write_text("hello!\n", encoding="utf-8")
    with pytest.raises(LvlmError, match=r"is not what the owner of key 731B793FB8FB1261 signed"):
        verified(hello)


def test_another_key_and_none(hello: Path) -> None:
    with pytest.raises(LvlmError, match=r"m\.txt is not signed: there is no m\.txt\.minisig"):
        verified(hello)
    beside(hello, SIGNED)
    with pytest.raises(
        LvlmError, match=r"by another key, 731B793FB8FB1261, and FFA502F1072E841E is"
    ):
        verified(hello, OTHER)
    impostor = PublicKey(read_public_key(LINE).number, read_public_key(OTHER).raw)
    with pytest.raises(LvlmError, match=r"is not what the owner of key 731B793FB8FB1261 signed"):
        verify_signature(hello.read_bytes(), hello, impostor)


def test_keys_that_are_none(key: Path) -> None:
    with pytest.raises(LvlmError, match=r"no such file: nowhere\.pub; give a minisign public key"):
        read_public_key("nowhere.pub")
    for content in ("", KEY, "untrusted comment: x\nRWRh\n"):
        key.with_suffix(".pub").write_text(content, encoding="utf-8")
        with pytest.raises(LvlmError, match=r"is not a minisign public key"):
            read_public_key(key.with_suffix(".pub"))
    for content in ("", PUBLIC, swapped(KEY, 1, "AAAA")):
        key.write_text(content, encoding="utf-8")
        with pytest.raises(LvlmError, match=r"is not a minisign secret key"):
            read_secret_key(key, no_password)
    raw = bytearray(base64.b64decode(KEY.splitlines()[1]))
    raw[70] ^= 1
    key.write_text(swapped(KEY, 1, base64.b64encode(raw).decode()), encoding="utf-8")
    with pytest.raises(LvlmError, match=r"its two halves are of two keys"):
        read_secret_key(key, no_password)
    raw[-1] ^= 1
    key.write_text(swapped(KEY, 1, base64.b64encode(raw).decode()), encoding="utf-8")
    with pytest.raises(LvlmError, match=r"its checksum is not its own"):
        read_secret_key(key, no_password)
    huge = bytearray(base64.b64decode(ENCRYPTED.splitlines()[1]))
    huge[38:54] = b"\xff" * 16
    key.write_text(swapped(KEY, 1, base64.b64encode(huge).decode()), encoding="utf-8")
    with pytest.raises(LvlmError, match=r"GB for its password; make a key without one"):
        read_secret_key(key, lambda: "hunter2")


def test_without_the_library_one_line_says_what_to_install(
    hello: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(hello, SIGNED)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(LvlmError, match=r"pip install 'lvlm-export\[sign\]'"):
        verified(hello)
    with pytest.raises(LvlmError, match=r"pip install 'lvlm-export\[sign\]'"):
        read_secret_key(key, no_password)


@pytest.fixture
def signed(damaged_bundle: Path, key: Path) -> Path:
    sign_file(damaged_bundle / MANIFEST, read_secret_key(key, no_password), "fleet 7")
    return damaged_bundle


def test_a_signed_bundle_opens_and_another_does_not(signed: Path) -> None:
    assert str(Bundle.open(signed, require_signature=LINE).key) == LINE
    assert Bundle.open(signed).key is None, "a signature that nobody asks for is a file"
    with pytest.raises(LvlmError, match="is signed by another key"):
        Bundle.open(signed, require_signature=OTHER)
    (signed / SIGNATURE).unlink()
    with pytest.raises(LvlmError, match="is not signed: there is no"):
        Bundle.open(signed, require_signature=LINE)


def test_nothing_is_parsed_before_the_signature(
    signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that was written anew, digest and all, is not even read as JSON."""
    content = json.loads((signed / MANIFEST).read_text(encoding="utf-8"))
    content["model"] = "another"
    content.pop("sha256")
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (signed / MANIFEST).write_text(json.dumps({"sha256": digest, **content}), encoding="utf-8")
    Bundle.open(signed)

    def parsed(*_: object, **__: object) -> None:
        raise AssertionError("something was parsed")

    for owner, name in ((json, "loads"), (bundles.records, "read"), (stamp.Stamp, "__init__")):
        monkeypatch.setattr(owner, name, parsed)
    with pytest.raises(LvlmError, match=r"is not what the owner of key 731B793FB8FB1261 signed"):
        Bundle.open(signed, require_signature=LINE)
    (signed / MANIFEST).write_bytes(b"[" * 1_000_000)
    with pytest.raises(LvlmError, match=r"is not what the owner of key"):
        Bundle.open(signed, require_signature=LINE)


def test_under_a_signature_the_stamp_is_not_believed(
    signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who writes files writes a stamp too."""
    weights = signed / WEIGHTS
    with weights.open("r+b") as stream:
        stream.write(b"evil")
    status = weights.stat()
    state = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    sha256 = json.loads((signed / MANIFEST).read_text(encoding="utf-8"))["files"][WEIGHTS]["sha256"]
    (signed / STAMP).write_text(json.dumps({WEIGHTS: [*state, sha256]}), encoding="utf-8")
    Bundle.open(signed)  # a stamp finds accidents, not people
    with pytest.raises(LvlmError, match=r"weights\.bin is damaged"):
        Bundle.open(signed, require_signature=LINE)
    monkeypatch.setattr(signature, "_MOST_BYTES", 8)
    with pytest.raises(LvlmError, match=r"has not its 4 lines"):
        Bundle.open(signed, require_signature=LINE)
