"""PEM texts of client certificates with their keys, good and bad. The RSA key is made once."""

from __future__ import annotations

import datetime
import functools
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

DAY = datetime.timedelta(days=1)


@functools.cache
def rsa_key(name: str = "first", bits: int = 2048) -> rsa.RSAPrivateKey:
    """The same key for the same name."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@functools.cache
def elliptic_key() -> ec.EllipticCurvePrivateKey:
    """A key that Entra ID does not take."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Any = None, password: str | None = None) -> str:
    """A private key as PKCS 8, encrypted when there is a password."""
    how = NoEncryption() if password is None else BestAvailableEncryption(password.encode())
    made: bytes = (key or rsa_key()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)
    return made.decode()


def certificate_pem(
    key: Any = None, *, begins: datetime.timedelta = -DAY, ends: datetime.timedelta = DAY
) -> str:
    """A self-signed certificate, in force from `begins` to `ends`, both seen from now."""
    key = key or rsa_key()
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode()


def client_pem(key: Any = None, password: str | None = None, **times: Any) -> str:
    """Key and certificate in one text."""
    return key_pem(key, password) + certificate_pem(key, **times)
