"""What the labels of an exchange are, and which series outlive a change of configuration. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aisix.core.exchange import Exchange
from aisix.core.resources import Deployment
from aisix.core.snapshot import Snapshot
from aisix.telemetry import figures
from aisix.telemetry.catalogue import API_KEY_LABEL, TARGET_LABELS, MetricRow
from aisix.telemetry.figures import UNKNOWN

INBOUND_PROTOCOL = "openai"
"""The one protocol callers speak; the label is there for those that follow."""


class Target(NamedTuple):
    """Where an exchange went; the fields are TARGET_LABELS."""

    provider: str
    model: str
    upstream_model: str
    provider_key_id: str
    provider_key_name: str


UNRESOLVED = Target(UNKNOWN, "unresolved", UNKNOWN, UNKNOWN, UNKNOWN)
"""The target of an exchange that ended before its alias was known."""


def target(alias_name: str, deployment: Deployment) -> Target:
    """The target that a configured deployment is."""
    return Target(
        provider=deployment.provider.lower() or UNKNOWN,
        model=alias_name,
        upstream_model=deployment.name or UNKNOWN,
        provider_key_id=deployment.provider_key_id or UNKNOWN,
        provider_key_name=deployment.provider_key_name or UNKNOWN,
    )


def exchange_target(exchange: Exchange) -> Target:
    """The target of an exchange, as configured: a wildcard's own is the caller's text by now."""
    alias = exchange.alias
    if alias is None:
        return UNRESOLVED
    return target(alias.name, alias.deployment)


def dimensions(exchange: Exchange) -> dict[str, str]:
    """Every label an exchange can have; each metric picks its own."""
    streaming = "true" if exchange.streaming else "false"
    return {
        **exchange_target(exchange)._asdict(),
        API_KEY_LABEL: exchange.caller.id if exchange.caller is not None else UNKNOWN,
        "endpoint": exchange.request.spec.template,
        "inbound_protocol": INBOUND_PROTOCOL,
        "is_fallback": "false",
        "stream": streaming,
        "streaming": streaming,
        "status": str(exchange.status) if exchange.status else UNKNOWN,
        "status_class": figures.status_class(exchange.status),
        "outcome": exchange.outcome,
    }


class Names(NamedTuple):
    """The configured names that labels carry."""

    targets: frozenset[Target]
    key_ids: frozenset[str]

    @classmethod
    def of(cls, snapshot: Snapshot) -> Names:
        """All that `snapshot` configures."""
        aliases = snapshot.every_alias()
        return cls(
            targets=frozenset(target(alias.name, alias.deployment) for alias in aliases),
            key_ids=frozenset(key.id for key in snapshot.keys_by_hash.values()),
        )

    def keeper(self, row: MetricRow) -> Callable[[tuple[str, ...]], bool]:
        """Tells of label values of `row` whether their target and caller key are configured."""
        labels = row.labels
        at = [labels.index(label) for label in TARGET_LABELS if label in labels]
        fields = [i for i, label in enumerate(TARGET_LABELS) if label in labels]
        live = {tuple([each[i] for i in fields]) for each in (*self.targets, UNRESOLVED)}
        key_at = labels.index(API_KEY_LABEL) if API_KEY_LABEL in labels else None
        key_ids = self.key_ids | {UNKNOWN}

        def keep(values: tuple[str, ...]) -> bool:
            known = key_at is None or values[key_at] in key_ids
            return known and tuple([values[i] for i in at]) in live

        return keep
