"""Sealing secrets and reading keys."""

from __future__ import annotations

import base64

import pytest

from aisix.errors import FieldError
from aisix.store.cipher import Cipher, SealBroken, parse_key

KEY = bytes(range(32))


def test_a_sealed_secret_opens_again_and_does_not_show():
    cipher = Cipher(KEY)
    sealed = cipher.seal("s3cret-ü", kind="provider_keys", id="1")
    assert b"s3cret" not in sealed
    assert cipher.open(sealed, kind="provider_keys", id="1") == "s3cret-ü"


def test_the_same_secret_never_looks_the_same():
    cipher = Cipher(KEY)
    assert len({cipher.seal("same", kind="k", id="1") for _ in range(20)}) == 20


@pytest.mark.parametrize(("kind", "id"), [("k", "2"), ("other", "1"), ("k/1", ""), ("", "k/1")])
def test_a_secret_moved_to_another_row_does_not_open(kind, id):
    cipher = Cipher(KEY)
    sealed = cipher.seal("s", kind="k", id="1")
    with pytest.raises(SealBroken):
        cipher.open(sealed, kind=kind, id=id)


def test_another_key_does_not_open():
    sealed = Cipher(KEY).seal("s", kind="k", id="1")
    with pytest.raises(SealBroken):
        Cipher(bytes(32)).open(sealed, kind="k", id="1")


def test_every_altered_byte_is_noticed():
    cipher = Cipher(KEY)
    sealed = cipher.seal("s", kind="k", id="1")
    for index in range(len(sealed)):
        altered = bytearray(sealed)
        altered[index] ^= 1
        with pytest.raises(SealBroken):
            cipher.open(bytes(altered), kind="k", id="1")
    for length in range(len(sealed)):
        with pytest.raises(SealBroken):
            cipher.open(sealed[:length], kind="k", id="1")


def test_a_key_of_another_length_is_refused():
    with pytest.raises(ValueError, match="32"):
        Cipher(b"short")


@pytest.mark.parametrize(
    "text",
    [
        KEY.hex(),
        KEY.hex().upper(),
        base64.b64encode(KEY).decode(),
        base64.urlsafe_b64encode(KEY).decode().rstrip("="),
        base64.b64encode(bytes([251] * 32)).decode() + "\n",
    ],
)
def test_a_key_may_be_hex_or_base64(text):
    assert len(parse_key(text)) == 32


def test_the_forms_of_a_key_are_the_same_key():
    assert parse_key(KEY.hex()) == parse_key(base64.b64encode(KEY).decode()) == KEY


@pytest.mark.parametrize(
    "text", ["", "short", "x" * 32, KEY.hex()[:-2], "ü" * 43, "!" * 44, KEY.hex() + "00", "="]
)
def test_what_is_no_key_is_refused_without_repeating_it(text):
    with pytest.raises(FieldError) as caught:
        parse_key(text)
    assert "openssl rand" in str(caught.value)
    assert not text or text == "=" or text not in str(caught.value)
