"""Client assertions: what an app shows the token endpoint in place of a secret.

A certificate's is a token that the app signs itself, and is verified as Entra ID does: by a
registered certificate, for this app and tenant, in time. A federated one comes from elsewhere; it
is known or not. No I/O but the file of a federated token, which is read at each request.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
THUMBPRINT = "x5t#S256"

# AADSTS numbers
UNREADABLE = 50027
OTHER_APP = 700021
OTHER_AUDIENCE = 700023
OUT_OF_TIME = 700024
BAD_SIGNATURE = 700027
NOT_FEDERATED = 700213


def judge(
    assertion: str,
    *,
    certificates: Iterable[str],
    federated: Iterable[str],
    client: str,
    tenant: str,
    now: float,
) -> int | None:
    """The AADSTS number of what is wrong with an assertion, or None."""
    try:
        signed, _, signature = assertion.rpartition(".")
        head, claims = (json.loads(_decode(part)) for part in signed.split("."))
        thumbprint, mark = head.get(THUMBPRINT), _decode(signature)
    except (ValueError, AttributeError):
        head, claims, thumbprint, mark = {}, {}, None, b""
    if thumbprint is None:
        return None if assertion in federated else NOT_FEDERATED
    if head.get("alg") != "PS256" or not isinstance(claims, dict):
        return UNREADABLE
    if not _is_signed(signed.encode(), mark, thumbprint, certificates):
        return BAD_SIGNATURE
    return _judge_claims(claims, client=client, tenant=tenant, now=now)


def read_federated(path: Path | None) -> str | None:
    """The token in the file now, if there is one."""
    try:
        return None if path is None else path.read_text().strip()
    except OSError:
        return None


def _judge_claims(claims: Mapping[str, Any], *, client: str, tenant: str, now: float) -> int | None:
    if {claims.get("iss"), claims.get("sub")} != {client}:
        return OTHER_APP
    # the scheme is not looked at: clients that insist on https are led here by http
    if urlsplit(str(claims.get("aud"))).path != f"/{tenant}/oauth2/v2.0/token":
        return OTHER_AUDIENCE
    begins, ends = claims.get("nbf"), claims.get("exp")
    in_time = isinstance(begins, int) and isinstance(ends, int) and begins - 300 <= now < ends
    return None if in_time else OUT_OF_TIME


def _is_signed(text: bytes, mark: bytes, thumbprint: str, certificates: Iterable[str]) -> bool:
    how = hashes.SHA256()
    for pem in certificates:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        key = certificate.public_key()
        named = base64.urlsafe_b64encode(certificate.fingerprint(how)).decode()
        if named.rstrip("=") != thumbprint.rstrip("=") or not isinstance(key, RSAPublicKey):
            continue
        try:
            key.verify(mark, text, PSS(mgf=MGF1(how), salt_length=how.digest_size), how)
        except InvalidSignature:
            continue
        return True
    return False


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
