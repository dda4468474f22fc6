"""Tries what an operator has set up: one harmless call, by the very pieces that traffic uses.

I/O by ports. The adapter builds the probe and reads the answer, the token source signs in, and a
token that Azure refuses is renewed once. Invariants: a verification ends within its deadline, few
run at once, it uses no caller's limit, and no secret is in its words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aisix.admin.refusals import busy
from aisix.core.ports import (
    Adapter,
    Clock,
    Deadlines,
    Finding,
    TokenSource,
    Transport,
    upstream_request_id,
)
from aisix.core.resources import Deployment, ResourceKey, TokenCredential
from aisix.errors import CredentialRefused, UpstreamFailed

DEADLINE_S = 15.0
AT_ONCE = 4

_CONNECT_SHARE = 1 / 3
_ANSWER_SHARE = 2 / 3
"""Of the deadline, connecting included: the rest is for a token."""

_MAX_ANSWER_BYTES = 64 * 1024
_WILDCARD = Finding(
    "deployment",
    "this wildcard model leads to as many deployments as callers name: none of them can be tried",
    "verify its provider key, or a model that names one deployment",
)


@dataclass(slots=True)
class Verification:
    """What was tried and found. `request` is method and URL, once there was a call."""

    finding: Finding
    latency_ms: int = 0
    request: str | None = None
    upstream_status: int | None = None
    upstream_request_id: str | None = None

    def render(self) -> dict[str, Any]:
        """As the admin API shows it, the verdict first."""
        return {
            "ok": self.finding.ok,
            "stage": self.finding.stage or None,
            "message": self.finding.message,
            "fix": self.finding.fix or None,
            "request": self.request,
            "upstream_status": self.upstream_status,
            "upstream_message": self.finding.said or None,
            "upstream_request_id": self.upstream_request_id,
            "latency_ms": self.latency_ms,
        }


class Verifier:
    """Verifies deployments, and the resources behind provider keys: deployments without a name."""

    def __init__(
        self,
        *,
        adapters: Mapping[str, Adapter],
        transport: Transport,
        tokens: TokenSource,
        clock: Clock,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._adapters = adapters
        self._transport = transport
        self._tokens = tokens
        self._clock = clock
        self._deadline_s = deadline_s
        answer_s = deadline_s * _ANSWER_SHARE
        self._deadlines = Deadlines(
            connect_s=deadline_s * _CONNECT_SHARE,
            first_byte_s=answer_s,
            idle_s=answer_s,
            total_s=answer_s,
        )
        self._running = 0

    async def verify(self, deployment: Deployment) -> Verification:
        """One call, or the reason for none. Raises Refusal when too many run already."""
        if self._running >= AT_ONCE:
            raise busy(AT_ONCE)
        self._running += 1
        began = self._clock.monotonic()
        try:
            found = await self._within_time(deployment)
        finally:
            self._running -= 1
        found.latency_ms = round(1000 * (self._clock.monotonic() - began))
        return found

    async def _within_time(self, deployment: Deployment) -> Verification:
        fault = deployment.fault
        if fault is not None:
            stage = "credential" if fault.kind == "credential" else "settings"
            return Verification(Finding(stage, fault.reason, "write the provider key again"))
        if "*" in deployment.name:
            return Verification(_WILDCARD)
        slow = f"no verdict within {self._deadline_s:g} s"
        found = Verification(Finding("credential", slow, "is the token authority reachable?"))
        try:
            async with asyncio.timeout(self._deadline_s):
                found.finding = await self._probe(deployment, found)
        except TimeoutError:
            if found.request is not None:
                found.finding = Finding("network", slow, "try again; is the network slow?")
        except UpstreamFailed as error:
            adapter = self._adapters[deployment.adapter]
            found.finding = adapter.judge_failure(error)
        return found

    async def _probe(self, deployment: Deployment, found: Verification) -> Finding:
        adapter, credential = self._adapters[deployment.adapter], deployment.credential
        token: str | None = None
        if credential is None or isinstance(credential, ResourceKey):
            return (await self._ask(adapter, deployment, token, found))[0]
        token = await self._tokens.token(credential)
        finding, refused = await self._ask(adapter, deployment, token, found)
        if not refused:
            return finding
        renewed = await self._renewed(credential, token)
        if renewed is None:
            return finding
        return (await self._ask(adapter, deployment, renewed, found))[0]

    async def _renewed(self, credential: TokenCredential, rejected: str) -> str | None:
        """A fresh token; None when there is no other one, and so Azure's refusal stands."""
        try:
            return await self._tokens.renew(credential, rejected)
        except CredentialRefused:
            return None

    async def _ask(
        self, adapter: Adapter, deployment: Deployment, token: str | None, found: Verification
    ) -> tuple[Finding, bool]:
        """What the answer means, and whether it refuses the token."""
        call = adapter.build_probe(deployment, token=token, deadlines=self._deadlines)
        found.request = f"{call.target.method} {call.target.url}"
        async with self._transport.open(call) as answer:
            found.upstream_status = answer.status
            found.upstream_request_id = upstream_request_id(answer.headers)
            body = await answer.read_all(_MAX_ANSWER_BYTES)
        body = _masked(body, deployment, token)
        finding = adapter.judge_answer(answer.status, answer.headers, body, deployment=deployment)
        return finding, adapter.refused_token(answer.status, body)


def _masked(body: bytes, deployment: Deployment, token: str | None) -> bytes:
    """Without what was sent: api_base may be anybody's, and an echo would be shown."""
    secrets = deployment.credential.secrets if deployment.credential is not None else ()
    for secret in (*secrets, *([token] if token else [])):
        body = body.replace(secret.encode(), b"***")
    return body
