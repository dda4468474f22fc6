"""Every kind of Entra ID credential, through azure-identity and libcurl, at the simulator."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aisix.core.resources import ClientCertificate, ManagedIdentity, WorkloadIdentity
from aisix.errors import CredentialRefused, CredentialUnavailable
from tests.integration.test_credentials_entra import entra_tokens, status_of
from tests.support.azure import CLIENT, TENANT, azure
from tests.support.client_certificates import DAY, certificate_pem, client_pem, rsa_key
from tests.support.tls import make_certificate

pytestmark = pytest.mark.gen_test

SCOPE = "https://cognitiveservices.azure.com/.default"
IDENTITY = "/subscriptions/1/resourcegroups/r/providers/x/userAssignedIdentities/gateway"
VARIABLES = (
    *("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST"),
    *("AZURE_POD_IDENTITY_AUTHORITY_HOST", "IDENTITY_ENDPOINT", "IDENTITY_HEADER"),
    *("IMDS_ENDPOINT", "MSI_ENDPOINT", "MSI_SECRET", "IDENTITY_SERVER_THUMBPRINT"),
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Not a word of Azure in the environment until a test says it."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


# ── certificates ────────────────────────────────────────────────────────────────────────────────


def certified(authority: str, pem: str, password: str | None = None) -> ClientCertificate:
    return ClientCertificate(
        tenant_id=TENANT,
        client_id=CLIENT,
        certificate=pem,
        password=password,
        authority=authority,
        scope=SCOPE,
    )


@pytest.mark.parametrize("password", [None, "opens it"])
async def test_a_certificate_signs_what_the_authority_verifies(password):
    pem = client_pem(password=password)
    certificate = pem[pem.index("-----BEGIN CERTIFICATE") :]
    async with azure(certificates=(certificate,)) as simulator, entra_tokens() as tokens:
        token = await tokens.token(certified(simulator.url, pem, password))
        assert await status_of(simulator, token) == 200
        (asked,) = simulator.token_requests
        assert b"client_secret" not in asked.body
        assert b"PRIVATE" not in asked.body


async def test_a_certificate_works_over_tls_with_an_authority_of_ones_own(tmp_path):
    server = make_certificate(tmp_path, "127.0.0.1")
    pem = client_pem()
    async with (
        azure(tls=(str(server.chain), str(server.key)), certificates=(pem,)) as simulator,
        entra_tokens(ca_file=str(server.authority)) as tokens,
    ):
        assert await tokens.token(certified(simulator.url, pem))
        assert simulator.url.startswith("https://")


@pytest.mark.logs("token.failed")
async def test_a_certificate_that_is_not_registered_is_told_by_its_number(caplog):
    pem = client_pem(rsa_key("stranger"))
    async with azure(certificates=(certificate_pem(),)) as simulator, entra_tokens() as tokens:
        with pytest.raises(CredentialRefused) as failed:
            await tokens.token(certified(simulator.url, pem))
    assert failed.value.message == "upstream authentication failed (AADSTS700027)"
    (record,) = caplog.records
    told = repr(vars(record)) + (failed.value.detail or "")
    assert record.credential == "client_certificate"
    assert not any(line in told for line in pem.splitlines())
    assert "eyJ" not in told


@pytest.mark.logs("token.failed")
@pytest.mark.parametrize(
    ("make", "password"),
    [
        (lambda: "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----", None),
        (lambda: client_pem(password="right"), "hunter2"),
    ],
)
async def test_a_stored_certificate_that_cannot_be_opened_is_a_refused_credential(make, password):
    pem = make()
    async with azure() as simulator, entra_tokens() as tokens:
        with pytest.raises(CredentialRefused, match="certificate cannot be used") as failed:
            await tokens.token(certified(simulator.url, pem, password))
        assert "hunter2" not in failed.value.message + (failed.value.detail or "")
        assert simulator.token_requests == []


async def test_an_expired_certificate_is_the_authoritys_to_judge():
    pem = client_pem(begins=-2 * DAY, ends=-DAY)
    async with azure(certificates=(pem,)) as simulator, entra_tokens() as tokens:
        assert await tokens.token(certified(simulator.url, pem))


# ── managed identity ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("identity", "parameter"),
    [
        (ManagedIdentity(SCOPE), None),
        (ManagedIdentity(SCOPE, "client_id", "mine"), "client_id"),
        (ManagedIdentity(SCOPE, "object_id", "mine"), "object_id"),
        (ManagedIdentity(SCOPE, "resource_id", IDENTITY), "msi_res_id"),
    ],
)
async def test_the_metadata_service_gives_a_token_in_one_call(environment, identity, parameter):
    async with (
        azure(identities=frozenset({"mine", IDENTITY})) as simulator,
        entra_tokens() as tokens,
    ):
        environment.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", simulator.url)
        assert await status_of(simulator, await tokens.token(identity)) == 200
        (asked,) = simulator.token_requests
        assert asked.path == "/metadata/identity/oauth2/token"
        assert asked.headers["metadata"] == "true"
        query = {"api-version": "2018-02-01", "resource": SCOPE.removesuffix("/.default")}
        assert asked.query == query | ({parameter: identity.identity} if parameter else {})


@pytest.mark.parametrize(
    ("identity", "parameter"),
    [
        (ManagedIdentity(SCOPE), None),
        (ManagedIdentity(SCOPE, "client_id", "mine"), "client_id"),
        (ManagedIdentity(SCOPE, "resource_id", IDENTITY), "mi_res_id"),
    ],
)
async def test_an_app_service_gives_a_token(environment, identity, parameter):
    async with (
        azure(identities=frozenset({"mine", IDENTITY})) as simulator,
        entra_tokens() as tokens,
    ):
        environment.setenv("IDENTITY_ENDPOINT", f"{simulator.url}/msi/token")
        environment.setenv("IDENTITY_HEADER", "simulator-identity-header")
        assert await status_of(simulator, await tokens.token(identity)) == 200
        (asked,) = simulator.token_requests
        assert asked.path == "/msi/token"
        assert set(asked.query) == {"api-version", "resource", *filter(None, [parameter])}


async def test_in_a_pod_with_workload_identity_a_managed_one_stays_managed(environment):
    async with azure() as simulator, entra_tokens() as tokens:
        for name in VARIABLES[:4]:
            environment.setenv(name, "/nowhere")
        environment.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", simulator.url)
        assert await tokens.token(ManagedIdentity(SCOPE))


@pytest.mark.logs("token.failed")
@pytest.mark.parametrize("identity", [ManagedIdentity(SCOPE, "client_id", "absent")])
async def test_an_identity_that_the_host_does_not_have_is_a_refused_credential(
    environment, identity
):
    async with azure() as simulator, entra_tokens() as tokens:
        environment.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", simulator.url)
        with pytest.raises(CredentialRefused) as failed:
            await tokens.token(identity)
        assert len(simulator.token_requests) == 1
    assert failed.value.message == (
        "upstream authentication failed: the managed identity endpoint has no such identity"
    )
    assert "assign the identity to this host" in (failed.value.detail or "")


@pytest.mark.logs("token.failed")
async def test_a_scope_that_the_metadata_service_does_not_know_is_told_by_its_number(environment):
    async with azure() as simulator, entra_tokens() as tokens:
        environment.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", simulator.url)
        with pytest.raises(CredentialRefused, match=r"\(AADSTS500011\)"):
            await tokens.token(ManagedIdentity("https://elsewhere/.default"))


@pytest.mark.logs("token.failed")
@pytest.mark.parametrize("script", ["err500", "err410", "err404", "err429-retry7", "drop"])
async def test_a_failing_metadata_service_is_asked_once_and_named(environment, script):
    async with azure() as simulator, entra_tokens() as tokens:
        environment.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", simulator.url)
        simulator.script("@entra", script)
        for _ in range(2):
            with pytest.raises(CredentialUnavailable, match="the managed identity endpoint"):
                await tokens.token(ManagedIdentity(SCOPE))
        assert len(simulator.token_requests) == 1


@pytest.mark.logs("token.failed")
async def test_without_a_metadata_service_the_endpoint_is_said_to_be_out_of_reach(environment):
    async with entra_tokens() as tokens:
        environment.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")
        with pytest.raises(CredentialUnavailable) as failed:
            await tokens.token(ManagedIdentity(SCOPE))
    assert failed.value.message == (
        "upstream authentication failed: the managed identity endpoint cannot be reached"
    )
    assert "could not connect" in (failed.value.detail or "")


@pytest.mark.logs("token.failed")
async def test_a_silent_metadata_service_ends_at_the_deadline(environment):
    async with azure() as simulator, entra_tokens(deadline_s=0.2) as tokens:
        environment.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", simulator.url)
        simulator.script("@entra", "hang")
        with pytest.raises(CredentialUnavailable, match="identity endpoint cannot be reached"):
            await tokens.token(ManagedIdentity(SCOPE))


@pytest.mark.logs("token.failed")
async def test_a_host_that_takes_no_named_identity_says_so(environment):
    environment.setenv("MSI_ENDPOINT", "http://127.0.0.1:1")
    async with entra_tokens() as tokens:
        with pytest.raises(CredentialRefused, match="cannot give the identity that is named"):
            await tokens.token(ManagedIdentity(SCOPE, "client_id", "mine"))


# ── workload identity ───────────────────────────────────────────────────────────────────────────


async def test_the_federated_token_is_read_anew_for_each_fetch(tmp_path: Path):
    file = tmp_path / "token"
    async with (
        azure(federated_tokens=frozenset({"eyJ.first", "eyJ.second"})) as simulator,
        entra_tokens() as tokens,
    ):
        credential = WorkloadIdentity(TENANT, CLIENT, str(file), simulator.url, SCOPE)
        file.write_text("eyJ.first\n")
        old = await tokens.token(credential)
        file.write_text("eyJ.second\n")
        assert await status_of(simulator, await tokens.renew(credential, old)) == 200
        first, second = simulator.token_requests
        assert b"client_assertion=eyJ.first&" in first.body
        assert b"client_assertion=eyJ.second&" in second.body


async def test_what_the_secret_leaves_out_is_the_environments(environment, tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("eyJ.first")
    async with azure(federated_token_file=file) as simulator, entra_tokens() as tokens:
        environment.setenv("AZURE_TENANT_ID", TENANT)
        environment.setenv("AZURE_CLIENT_ID", CLIENT)
        environment.setenv("AZURE_FEDERATED_TOKEN_FILE", str(file))
        environment.setenv("AZURE_AUTHORITY_HOST", f"{simulator.url}/")
        assert await status_of(simulator, await tokens.token(WorkloadIdentity())) == 200
        (asked,) = simulator.token_requests
        assert asked.path == f"/{TENANT}/oauth2/v2.0/token"


@pytest.mark.logs("token.failed")
async def test_what_the_environment_lacks_is_named_with_the_way_to_give_it(environment):
    environment.setenv("AZURE_TENANT_ID", TENANT)
    async with entra_tokens() as tokens:
        with pytest.raises(CredentialRefused) as failed:
            await tokens.token(WorkloadIdentity())
    assert failed.value.message == (
        "upstream authentication failed: workload identity lacks client_id (or AZURE_CLIENT_ID), "
        "token_file (or AZURE_FEDERATED_TOKEN_FILE)"
    )
    assert "azure.workload.identity/use" in (failed.value.detail or "")


@pytest.mark.logs("token.failed")
@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), ("", "holds no token"), ("two tokens", "holds no token")],
)
async def test_a_bad_token_file_is_named_in_the_log_only(tmp_path: Path, content, words):
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    async with azure() as simulator, entra_tokens() as tokens:
        credential = WorkloadIdentity(TENANT, CLIENT, str(file), simulator.url, SCOPE)
        with pytest.raises(CredentialRefused, match=words) as failed:
            await tokens.token(credential)
        assert simulator.token_requests == []
    assert str(file) not in failed.value.message
    assert str(file) in (failed.value.detail or "")


@pytest.mark.logs("token.failed")
@pytest.mark.parametrize(
    ("name", "value"),
    [("AZURE_AUTHORITY_HOST", "ftp://x.test"), ("AZURE_TENANT_ID", "a/b")],
)
async def test_a_wrong_environment_is_told_before_anybody_is_asked(environment, name, value):
    environment.setenv(name, value)
    credential = WorkloadIdentity(None if name == "AZURE_TENANT_ID" else TENANT, CLIENT, os.devnull)
    async with entra_tokens() as tokens:
        with pytest.raises(CredentialRefused, match="environment of the workload identity"):
            await tokens.token(credential)


@pytest.mark.logs("token.failed")
async def test_an_unknown_federated_token_is_told_by_its_number_and_never_shown(
    tmp_path: Path, caplog
):
    file = tmp_path / "token"
    file.write_text("opaque-federated-token")
    async with azure() as simulator, entra_tokens() as tokens:
        credential = WorkloadIdentity(TENANT, CLIENT, str(file), simulator.url, SCOPE)
        with pytest.raises(CredentialRefused, match=r"\(AADSTS700213\)") as failed:
            await tokens.token(credential)
    (record,) = caplog.records
    assert "opaque-federated-token" not in repr(vars(record)) + repr(vars(failed.value))
