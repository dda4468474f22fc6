"""Secrets at rest: AES-256-GCM, one random nonce each, bound to the row they belong to.

`Cipher` is pure. `unlock` does I/O: it finds the key (configured, or a 0600 file beside the
database that it makes on first start) and proves it on a canary before anything is read or
written, so that a wrong key stops the start instead of sealing rows under two keys.

A sealed value is `version ‖ nonce ‖ ciphertext ‖ tag`; kind and id are authenticated with it, so a
sealed secret copied to another row does not open.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aisix.core.ports import StoreUnavailable
from aisix.errors import FieldError
from aisix.store.database import Database

KEY_BYTES = 32
_NONCE_BYTES = 12
_VERSION = b"\x01"
_CANARY = "aisix"


class SealBroken(Exception):
    """A sealed value does not open: another key, another row, or damaged bytes."""


class Cipher:
    """Seals and opens the secrets of rows under one key."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key must have {KEY_BYTES} bytes")
        self._key = key
        self._aead = AESGCM(key)

    def derive(self, purpose: str) -> bytes:
        """A key for another purpose, the same wherever this one is."""
        return hmac.digest(self._key, purpose.encode(), "sha256")

    def seal(self, text: str, *, kind: str, id: str) -> bytes:
        """`text`, unreadable without the key, for this row only."""
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + self._aead.encrypt(nonce, text.encode(), _binding(kind, id))

    def open(self, sealed: bytes, *, kind: str, id: str) -> str:
        """The text again. Raises SealBroken."""
        if sealed[:1] != _VERSION or len(sealed) <= 1 + _NONCE_BYTES:
            raise SealBroken("unknown form of sealed secret")
        nonce, rest = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return self._aead.decrypt(nonce, rest, _binding(kind, id)).decode()
        except (InvalidTag, UnicodeDecodeError) as error:
            raise SealBroken("the sealed secret does not open with this key") from error


def parse_key(text: str) -> bytes:
    """A configured key: 32 bytes as 64 hex digits or as base64. Raises FieldError."""
    text = text.strip()
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    standard = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        key = base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise FieldError(
            f"must be {KEY_BYTES} random bytes as base64 or hex; make one with "
            "`openssl rand -base64 32`"
        )
    return key


@dataclass(frozen=True, slots=True)
class Unlocked:
    """The result of `unlock`. `key_file` is None with a configured key; `created` tells a first
    start, which should say that the file must be backed up with the database."""

    cipher: Cipher = field(repr=False)
    key_file: Path | None
    created: bool

    @property
    def exposed(self) -> bool:
        """Whether others than the owner can read the key file."""
        return self.key_file is not None and bool(self.key_file.stat().st_mode & 0o077)


async def unlock(database: Database, *, key: bytes | None) -> Unlocked:
    """Find the key and prove it on the canary. Raises StoreUnavailable; nothing changes then."""
    canary = await _read_canary(database)
    sealed = bool(await database.rows("SELECT 1 FROM resources WHERE secret IS NOT NULL LIMIT 1"))
    key_file: Path | None = None
    created = False
    if key is None:
        key_file = database.path.with_name(database.path.name + ".key")
        key = _read_key_file(key_file)
        if key is None:
            if sealed:
                raise StoreUnavailable(
                    f"database {database.path} holds sealed secrets, but its key file {key_file} "
                    "is missing and store.encryption_key is not set; restore the key file"
                )
            key = _make_key_file(key_file)
            canary, created = None, True
    elif canary is None and sealed:
        raise StoreUnavailable(
            f"database {database.path} holds sealed secrets but no proof of their key; it is "
            "damaged: restore a backup"
        )
    cipher = Cipher(key)
    if canary is None:
        await _write_canary(database, cipher)
    else:
        _prove(cipher, canary, source=str(key_file or "store.encryption_key"), path=database.path)
    return Unlocked(cipher=cipher, key_file=key_file, created=created)


def _prove(cipher: Cipher, canary: bytes, *, source: str, path: Path) -> None:
    try:
        cipher.open(canary, kind="meta", id="canary")
    except SealBroken as error:
        raise StoreUnavailable(
            f"the encryption key from {source} is not the one that database {path} was sealed "
            "with; nothing was changed: configure the original key"
        ) from error


async def _read_canary(database: Database) -> bytes | None:
    rows = await database.rows("SELECT value FROM meta WHERE name = 'canary'")
    return bytes(rows[0]["value"]) if rows else None


async def _write_canary(database: Database, cipher: Cipher) -> None:
    sealed = cipher.seal(_CANARY, kind="meta", id="canary")
    async with database.writing() as connection:
        await connection.execute(
            "INSERT OR REPLACE INTO meta (name, value) VALUES ('canary', ?)", (sealed,)
        )


def _read_key_file(path: Path) -> bytes | None:
    try:
        text = path.read_text("ascii")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreUnavailable(f"key file {path} cannot be read: {error}") from error
    try:
        return parse_key(text)
    except FieldError as error:
        raise StoreUnavailable(
            f"key file {path} does not hold a key of {KEY_BYTES} bytes; restore it from a backup"
        ) from error


def _make_key_file(path: Path) -> bytes:
    """Make the key and bring it to the disk before anything is sealed with it."""
    key = os.urandom(KEY_BYTES)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(base64.b64encode(key).decode() + "\n")
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreUnavailable(f"key file {path} cannot be written: {error.strerror}") from error
    return key


def _binding(kind: str, id: str) -> bytes:
    return f"{len(kind)}:{kind}/{id}".encode()
