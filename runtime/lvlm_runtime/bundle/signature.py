"""Who a bundle is from: signatures in the formats of minisign, over its manifest.

The manifest holds the SHA-256 of every file, so its signature covers them all. Keys and signatures
are minisign's own files: ``minisign -V`` takes ours and this takes ``minisign -S``'s. Ed25519 is the
library ``cryptography``'s, which comes with the extra ``sign``.
Source: https://jedisct1.github.io/minisign/ ("Signature format", "Public key format", "Secret key
format"); minisign 0.11, ``minisign.h``; libsodium, ``crypto_pwhash_scryptsalsa208sha256``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvlm_profiles.files import write_whole
from lvlm_runtime.errors import LvlmError

SUFFIX = ".minisig"
UNTRUSTED, TRUSTED = "untrusted comment: ", "trusted comment: "
# Of keys, and of signatures over the BLAKE2b of a file; "Ed" signatures over the file itself are old.
KEY, PREHASHED, OLD = b"Ed", b"ED", b"Ed"
SCRYPT, PLAIN, BLAKE2B = b"Sc", b"\0\0", b"B2"
# Public key: algorithm, key's number, key. Signature: algorithm, key's number, signature.
_PUBLIC, _SIGNATURE = struct.Struct("2s8s32s"), struct.Struct("2s8s64s")
# Secret key: algorithms of key, password and checksum; salt and limits of the password; then, under
# the password's stream, the key's number, seed and public key, and a checksum.
_SECRET, _INNER = struct.Struct("<2s2s2s32sQQ104s"), struct.Struct("8s32s32s32s")
# Such files have some hundred bytes.
_MOST_BYTES = 1 << 14
# A password's stream may take 2 GB of memory; minisign's own takes 1 GB.
_MOST_MEMORY = 2 << 30


@dataclass(frozen=True)
class PublicKey:
    """What signatures are verified with.

    Attributes:
        number: Key's number, 8 bytes, which only tells keys apart.
        raw: The key, 32 bytes.
    """

    number: bytes
    raw: bytes

    def __str__(self) -> str:
        """As minisign prints it."""
        return base64.b64encode(_PUBLIC.pack(KEY, self.number, self.raw)).decode()


@dataclass(frozen=True)
class SecretKey:
    """What signs.

    Attributes:
        number: As of its public key.
        seed: 32 bytes.
        public: Its public key.
    """

    number: bytes
    seed: bytes = field(repr=False)
    public: PublicKey


def read_public_key(key: str | os.PathLike[str]) -> PublicKey:
    """A public key, from minisign's file or from its one line of base64.

    Raises:
        LvlmError: It is neither.
    """
    text = os.fspath(key)
    if not Path(text).exists() and len(text) == 56:
        line = text
    else:
        line = _lines(Path(text), 2, "public key")[1]
    try:
        algorithm, number, raw = _PUBLIC.unpack(base64.b64decode(line, validate=True))
    except (binascii.Error, struct.error, ValueError):
        algorithm = b""
    if algorithm != KEY:
        raise LvlmError(f"{text} is not a minisign public key; give the .pub file of `minisign -G`")
    return PublicKey(number, raw)


def read_secret_key(path: Path, password: Callable[[], str]) -> SecretKey:
    """A secret key from minisign's file.

    Args:
        path: The file.
        password: Asked where the file is encrypted.

    Raises:
        LvlmError: It is none, or the password is wrong.
    """
    line = _lines(path, 2, "secret key")[1]
    try:
        algorithm, kdf, check, salt, operations, memory, inner = _SECRET.unpack(
            base64.b64decode(line, validate=True)
        )
    except (binascii.Error, struct.error, ValueError):
        algorithm = kdf = check = b""
    if algorithm != KEY or check != BLAKE2B or kdf not in (SCRYPT, PLAIN):
        raise LvlmError(f"{path} is not a minisign secret key; give the .key file of `minisign -G`")
    if kdf == SCRYPT:
        stream = _stream(password(), salt, operations, memory, path)
        inner = bytes(a ^ b for a, b in zip(inner, stream, strict=True))
    number, seed, raw, checksum = _INNER.unpack(inner)
    digest = hashlib.blake2b(algorithm + number + seed + raw, digest_size=32).digest()
    # `minisign -W` leaves the checksum of a key without a password empty.
    if digest != checksum and (kdf == SCRYPT or any(checksum)):
        reason = "the password is wrong" if kdf == SCRYPT else "its checksum is not its own"
        raise LvlmError(f"{path} cannot be used: {reason}; give the right one")
    if _private(seed).public_key().public_bytes_raw() != raw:
        raise LvlmError(f"{path} cannot be used: its two halves are of two keys; make a new one")
    return SecretKey(number, seed, PublicKey(number, raw))


def sign_file(path: Path, key: SecretKey, trusted: str) -> Path:
    """Sign a file; the signature lies beside it.

    Args:
        path: The file.
        key: Whose signature it is.
        trusted: One line that the signature covers too.

    Returns:
        The signature's file.
    """
    private = _private(key.seed)
    signature = private.sign(hashlib.blake2b(path.read_bytes()).digest())
    whole = private.sign(signature + trusted.encode())
    lines = (
        f"{UNTRUSTED}signature from lvlm-export",
        base64.b64encode(_SIGNATURE.pack(PREHASHED, key.number, signature)).decode(),
        f"{TRUSTED}{trusted}",
        base64.b64encode(whole).decode(),
    )
    target = path.with_name(path.name + SUFFIX)
    write_whole(target, "".join(f"{line}\n" for line in lines))
    return target


def has_signature(path: Path) -> bool:
    """A signature lies beside a file; whose, and of what, only ``verify_signature`` says."""
    return path.with_name(path.name + SUFFIX).exists()


def verify_signature(data: bytes, path: Path, key: PublicKey) -> str:
    """Is this the file that the owner of a key signed?

    Args:
        data: The file's bytes, of which nothing was used before.
        path: Its name; the signature lies beside it.
        key: The only key that counts.

    Returns:
        The trusted comment.

    Raises:
        LvlmError: There is no signature, it is another key's, or it is of other bytes.
    """
    beside = path.with_name(path.name + SUFFIX)
    if not has_signature(path):
        raise LvlmError(
            f"{path} is not signed: there is no {beside.name}; lvlm-export sign signs it"
        )
    _, line, comment, last = _lines(beside, 4, "signature")
    try:
        algorithm, number, signature = _SIGNATURE.unpack(base64.b64decode(line, validate=True))
        whole = base64.b64decode(last, validate=True)
    except (binascii.Error, struct.error, ValueError):
        algorithm, whole = b"", b""
    if algorithm == OLD:
        raise LvlmError(
            f"{beside} is of minisign's old kind; sign again with minisign 0.10 or newer"
        )
    if algorithm != PREHASHED or not comment.startswith(TRUSTED):
        raise LvlmError(f"{beside} is not a minisign signature; sign the bundle again")
    if number != key.number:
        raise LvlmError(
            f"{path} is signed by another key, {_shown(number)}, and {_shown(key.number)} is"
            " required; get the bundle from whom you trust"
        )
    trusted = comment.removeprefix(TRUSTED)
    if not (
        _holds(key, signature, hashlib.blake2b(data).digest())
        and _holds(key, whole, signature + trusted.encode())
    ):
        raise LvlmError(
            f"{path} is not what the owner of key {_shown(key.number)} signed; get the bundle from"
            " whom you trust"
        )
    return trusted


def comment_of(path: Path, key: PublicKey) -> str:
    """The trusted comment of a file's signature as a terminal may show it; errors as above."""
    trusted = verify_signature(path.read_bytes(), path, key)
    return "".join(letter if letter.isprintable() else " " for letter in trusted)


def _holds(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Ed25519 over a message."""
    library = _ed25519()
    from cryptography.exceptions import InvalidSignature

    try:
        library.Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _private(seed: bytes) -> Any:
    return _ed25519().Ed25519PrivateKey.from_private_bytes(seed)


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise LvlmError(
            "signatures need the library cryptography, which is not installed here; pip install"
            " 'lvlm-export[sign]'"
        ) from None
    return ed25519


def _stream(password: str, salt: bytes, operations: int, memory: int, path: Path) -> bytes:
    """What an encrypted key is XORed with: scrypt with the parameters that libsodium picks."""
    operations = max(operations, 32768)
    rounds = 8
    few = operations < memory // 32
    most = operations // (rounds * 4) if few else memory // (rounds * 128)
    log_n = next(bits for bits in range(1, 64) if bits == 63 or 1 << bits > most // 2)
    lanes = 1 if few else min(operations // 4 // (1 << log_n), 0x3FFFFFFF) // rounds
    need = 128 * rounds * ((1 << log_n) + lanes + 2)
    if need > _MOST_MEMORY:
        raise LvlmError(
            f"{path} wants {need / 1e9:.0f} GB for its password; make a key without one"
        )
    return hashlib.scrypt(
        password.encode(),
        salt=salt,
        n=1 << log_n,
        r=rounds,
        p=max(1, lanes),
        maxmem=need,
        dklen=104,
    )


def _lines(path: Path, count: int, what: str) -> list[str]:
    """The lines of one of minisign's files, the first of which is a comment that nothing covers."""
    try:
        with path.open("rb") as stream:
            text = stream.read(_MOST_BYTES).decode()
    except FileNotFoundError:
        raise LvlmError(f"no such file: {path}; give a minisign {what}") from None
    except UnicodeDecodeError:
        text = ""
    # What ends a line is a line feed alone; "\r" is what an editor may have put before it.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if len(lines) != count or not lines[0].startswith(UNTRUSTED):
        raise LvlmError(f"{path} is not a minisign {what}: it has not its {count} lines")
    return lines


def _shown(number: bytes) -> str:
    """As minisign shows a key's number."""
    return number[::-1].hex().upper()
