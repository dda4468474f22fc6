"""Whether Entra ID could take a client certificate: the only judge of its PEM text. Pure.

Asked when a provider key is written, so that a bad paste is told to the operator and not to
callers a day later. cryptography is loaded then, so nothing on the data path pays for it.
Invariant: no error text and no exception chain repeats any byte of the PEM text or the password.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from aisix.errors import FieldError

_FIELD = "secret: client_certificate"
_LEAST_BITS = 2048


def check_certificate(pem: str, password: str | None, *, now: float) -> None:
    """Raises FieldError unless `pem` holds an RSA key and, first, its certificate in force.

    `now` is UTC epoch seconds.
    """
    certificates = _certificates(pem)
    key = _private_key(pem, password)
    if key.key_size < _LEAST_BITS:
        raise FieldError(
            f"{_FIELD} has an RSA key of {key.key_size} bits; Entra ID wants {_LEAST_BITS} or more"
        )
    _check_pair(certificates, key)
    _check_time(certificates[0], datetime.fromtimestamp(now, UTC))


def _certificates(pem: str) -> list[x509.Certificate]:
    if "-----BEGIN CERTIFICATE-----" not in pem:
        raise FieldError(
            f"{_FIELD} has no certificate; append the PEM block that begins with "
            "-----BEGIN CERTIFICATE----- to the one of the private key"
        )
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise FieldError(
            f"{_FIELD} has a certificate that cannot be read; paste the PEM file unchanged, with "
            "its line breaks"
        ) from None


def _private_key(pem: str, password: str | None) -> RSAPrivateKey:
    if "PRIVATE KEY-----" not in pem:
        raise FieldError(
            f"{_FIELD} has no private key; append the PEM block that begins with "
            "-----BEGIN PRIVATE KEY----- (the portal's .cer file holds the certificate only)"
        )
    encrypted = "ENCRYPTED" in pem
    if encrypted and password is None:
        raise FieldError(
            f"{_FIELD} has an encrypted private key; give its client_certificate_password"
        )
    if not encrypted and password is not None:
        raise FieldError(
            f"{_FIELD} has a private key that is not encrypted; leave client_certificate_password "
            "out"
        )
    try:
        key = load_pem_private_key(pem.encode(), None if password is None else password.encode())
    except Exception:  # whatever the reading of a damaged key meets, the text is the same
        reason = (
            "a private key that client_certificate_password does not open; check the password"
            if encrypted
            else "a private key that cannot be read; paste the PEM file unchanged, with its line "
            "breaks"
        )
        raise FieldError(f"{_FIELD} has {reason}") from None
    if not isinstance(key, RSAPrivateKey):
        raise FieldError(
            f"{_FIELD} has a private key that is not RSA; Entra ID takes RSA keys only"
        )
    return key


def _check_pair(certificates: list[x509.Certificate], key: RSAPrivateKey) -> None:
    matching = [_public(certificate) == _public(key) for certificate in certificates]
    if not any(matching):
        raise FieldError(
            f"{_FIELD} has a certificate that does not belong to the private key; paste both from "
            "the same file"
        )
    if not matching[0]:
        raise FieldError(
            f"{_FIELD} begins with another certificate than the private key's; put the key's own "
            "certificate before those that issued it"
        )


def _public(holder: x509.Certificate | RSAPrivateKey) -> bytes:
    key = holder.public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_time(certificate: x509.Certificate, now: datetime) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= ends:
        raise FieldError(
            f"{_FIELD} expired on {ends:%Y-%m-%d %H:%M} UTC; make a new one and upload it to the "
            "app registration"
        )
    if now < begins:
        raise FieldError(
            f"{_FIELD} is not valid before {begins:%Y-%m-%d %H:%M} UTC; is this machine's clock "
            "right?"
        )
