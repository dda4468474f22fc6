"""Client assertions and managed identities at the simulator, without its wire."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS

from aisix.simulator import faults
from aisix.simulator.assertion import ASSERTION_TYPE
from aisix.simulator.entra import Authority, Directory
from aisix.simulator.identity import APP_PATH, IMDS_PATH, Identities
from aisix.simulator.script import Script, parse
from tests.support.client_certificates import certificate_pem, elliptic_key, rsa_key

RESOURCE = "https://cognitiveservices.azure.com"


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode()


def assertion(pem: str, *, key: Any = None, head: Any = None, **changes: Any) -> str:
    """What an app signs; by default a good one."""
    sha256 = hashes.SHA256()
    named = x509.load_pem_x509_certificate(pem.encode()).fingerprint(sha256)
    header = {"alg": "PS256", "typ": "JWT", "x5t#S256": encoded(named)} | (head or {})
    now = int(time.time())
    claims = {
        "iss": "app",
        "sub": "app",
        "aud": "https://login.test/tid/oauth2/v2.0/token",
        "nbf": now,
        "exp": now + 600,
    } | changes
    signed = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(claims).encode())}"
    padding = PSS(mgf=MGF1(sha256), salt_length=sha256.digest_size)
    return f"{signed}.{encoded((key or rsa_key()).sign(signed.encode(), padding, sha256))}"


def number(directory: Directory, text: str, **changes: str) -> int:
    """The AADSTS number of the answer; 0 for a token."""
    form = {
        "grant_type": "client_credentials",
        "client_id": "app",
        "client_assertion": text,
        "client_assertion_type": ASSERTION_TYPE,
        "scope": f"{RESOURCE}/.default",
    } | changes
    answer = Authority(directory).answer("tid", urlencode(form).encode(), Script())
    if answer.status == 200:
        return 0
    found: int = json.loads(answer.body)["error_codes"][0]
    return found


def test_an_assertion_is_verified_by_the_registered_certificate() -> None:
    pem = certificate_pem()
    other, curved = certificate_pem(rsa_key("other")), certificate_pem(elliptic_key())
    registered = Directory(certificates=(curved, other, pem))
    assert number(registered, assertion(pem)) == 0
    assert number(Directory(certificates=(other,)), assertion(pem)) == 700027
    assert number(registered, assertion(pem, key=rsa_key("forger"))) == 700027
    assert number(Directory(), assertion(pem)) == 700027
    curved_name = encoded(
        x509.load_pem_x509_certificate(curved.encode()).fingerprint(hashes.SHA256())
    )
    assert number(registered, assertion(pem, head={"x5t#S256": curved_name})) == 700027


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"iss": "another"}, 700021),
        ({"aud": "https://login.test/other/oauth2/v2.0/token"}, 700023),
        ({"exp": int(time.time()) - 1}, 700024),
        ({"nbf": int(time.time()) + 900}, 700024),
        ({"exp": "soon"}, 700024),
        ({"head": {"alg": "none"}}, 50027),
    ],
)
def test_an_assertion_must_be_for_this_app_tenant_and_time(changes: Any, expected: int) -> None:
    pem = certificate_pem()
    assert number(Directory(certificates=(pem,)), assertion(pem, **changes)) == expected


def test_a_federated_token_is_known_by_its_text_or_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    directory = Directory(federated_tokens=frozenset({"a.b.c"}), federated_token_file=file)
    assert number(directory, "a.b.c") == 0
    assert number(directory, "d.e.f") == 700213
    file.write_text("d.e.f\n")
    assert number(directory, "d.e.f") == 0
    file.write_text("g.h.i")
    assert number(directory, "d.e.f") == 700213
    assert number(directory, "") == 7000218


def test_an_assertion_needs_its_type() -> None:
    directory = Directory(federated_tokens=frozenset({"a.b.c"}))
    assert number(directory, "a.b.c", client_assertion_type="jwt") == 9002313


IMDS = {"api-version": "2018-02-01", "resource": RESOURCE}
APP = {"api-version": "2019-08-01", "resource": RESOURCE}
HEADER = {"x-identity-header": "simulator-identity-header"}


def identities(**fields: Any) -> Identities:
    return Identities(Authority(Directory(**fields)))


def test_the_metadata_service_gives_a_token_that_opens_the_resource() -> None:
    authority = Authority(Directory())
    answer = Identities(authority).answer(
        IMDS_PATH, query=IMDS, headers={"metadata": "true"}, script=Script()
    )
    document = json.loads(answer.body)
    assert answer.status == 200
    assert authority.accepts(document["access_token"])
    assert document["expires_in"] == "3599"
    assert abs(int(document["expires_on"]) - time.time() - 3599) < 5
    assert authority.requests == 1


@pytest.mark.parametrize(
    ("path", "query", "headers", "status", "words"),
    [
        (IMDS_PATH, IMDS, {}, 400, b"metadata header"),
        (IMDS_PATH, IMDS, {"metadata": "true", "x-forwarded-for": "1"}, 400, b"Proxied"),
        (IMDS_PATH, {**IMDS, "api-version": "x"}, {"metadata": "true"}, 400, b"api-version"),
        (IMDS_PATH, {**IMDS, "resource": ""}, {"metadata": "true"}, 400, b"is missing"),
        (IMDS_PATH, {**IMDS, "resource": "https://x"}, {"metadata": "true"}, 400, b"500011"),
        (IMDS_PATH, {**IMDS, "client_id": "b"}, {"metadata": "true"}, 400, b"Identity not found"),
        (IMDS_PATH, {**IMDS, "client_id": "a"}, {"metadata": "true"}, 200, b"access_token"),
        (IMDS_PATH, {**IMDS, "msi_res_id": "a"}, {"metadata": "true"}, 200, b"access_token"),
        (
            IMDS_PATH,
            {**IMDS, "client_id": "a", "object_id": "a"},
            {"metadata": "true"},
            400,
            b"Only one",
        ),
        (APP_PATH, APP, {}, 401, b""),
        (APP_PATH, IMDS, HEADER, 400, b"api-version"),
        (APP_PATH, APP, HEADER, 200, b"access_token"),
        (APP_PATH, {**APP, "mi_res_id": "a"}, HEADER, 200, b"access_token"),
        (APP_PATH, {**APP, "mi_res_id": "b"}, HEADER, 400, b"Identity not found"),
    ],
)
def test_what_is_asked_of_an_identity_endpoint_is_checked(
    path: str, query: Any, headers: Any, status: int, words: bytes
) -> None:
    known = identities(identities=frozenset({"a"}))
    answer = known.answer(path, query=query, headers=headers, script=Script())
    assert answer.status == status
    assert words in answer.body


def test_a_host_without_an_identity_of_its_own_says_so() -> None:
    bare = identities(system_identity=False)
    answer = bare.answer(IMDS_PATH, query=IMDS, headers={"metadata": "true"}, script=Script())
    assert (answer.status, b"Identity not found" in answer.body) == (400, True)


def test_errors_of_an_identity_endpoint_can_be_scripted() -> None:
    script = parse("err429-retry3", errors=faults.NAMES)
    answer = identities().answer(IMDS_PATH, query=IMDS, headers={}, script=script)
    assert answer.status == 429
    assert ("retry-after", "3") in answer.headers
