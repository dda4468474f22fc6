"""What a probe without an answer means, where no server can be made to fail so."""

import pytest

from aisix.errors import (
    CredentialRefused,
    CredentialUnavailable,
    UpstreamFailed,
    UpstreamMisconfigured,
    UpstreamUnreachable,
)
from aisix.upstream.findings import judge_failure

FAILED = "upstream authentication failed"


@pytest.mark.parametrize(
    ("error", "stage", "fix"),
    [
        (
            CredentialRefused(f"{FAILED}: the managed identity endpoint has no such identity"),
            "credential",
            "assign the identity to the host",
        ),
        (
            CredentialUnavailable(f"{FAILED}: the managed identity endpoint cannot be reached"),
            "credential",
            "does the gateway run in Azure",
        ),
        (
            CredentialRefused(f"{FAILED}: workload identity lacks client_id", detail="set it"),
            "credential",
            "correct the secret or the environment",
        ),
        (CredentialRefused(f"{FAILED} (AADSTS50001)"), "credential", "page on this number"),
        (CredentialRefused(f"{FAILED} (AADSTS700027)"), "credential", "upload the certificate"),
        (CredentialRefused(f"{FAILED} (AADSTS700213)"), "credential", "issuer, subject and"),
        (UpstreamMisconfigured("invalid upstream configuration: x"), "settings", "named setting"),
        (UpstreamUnreachable("the upstream could not be reached"), "network", "check the network"),
    ],
)
def test_a_failure_has_a_stage_and_a_fix(error: UpstreamFailed, stage: str, fix: str):
    finding = judge_failure(error)
    assert (finding.ok, finding.stage, finding.message) == (False, stage, error.message)
    assert fix in finding.fix
    assert finding.said == (error.detail or "")
