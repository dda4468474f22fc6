"""One immutable view of all resources, read once per exchange and swapped whole. Pure.

The control half builds a new Snapshot after every write and publishes it; the data half only ever
reads `current()`. A configuration change therefore never mixes with a running request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from aisix.core.patterns import capture
from aisix.core.resources import Alias, ApiKey, Deployment


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All resources at one revision. `taken_at` is UTC epoch seconds.

    `homes` has a deployment without a name for each provider key: where responses live that an
    alias made before it was pointed elsewhere. `seal_key` seals their ids; it is the same in every
    process that shares the store.
    """

    revision: int = 0
    taken_at: float = 0.0
    keys_by_hash: Mapping[str, ApiKey] = field(
        repr=False, default_factory=lambda: MappingProxyType({})
    )
    aliases: Mapping[str, Alias] = field(default_factory=lambda: MappingProxyType({}))
    wildcards: tuple[Alias, ...] = ()
    aliases_by_id: Mapping[str, Alias] = field(
        repr=False, default_factory=lambda: MappingProxyType({})
    )
    homes: Mapping[str, Deployment] = field(
        repr=False, default_factory=lambda: MappingProxyType({})
    )
    seal_key: bytes = field(repr=False, default=b"")

    @classmethod
    def build(
        cls,
        *,
        revision: int,
        taken_at: float,
        keys: Iterable[ApiKey],
        aliases: Iterable[Alias],
        homes: Iterable[Deployment] = (),
        seal_key: bytes = b"",
    ) -> Snapshot:
        """Index the resources; wildcards are ordered so that the longest literal text wins."""
        exact: dict[str, Alias] = {}
        wild: list[Alias] = []
        for alias in aliases:
            if "*" in alias.name:
                wild.append(alias)
            else:
                exact[alias.name] = alias
        wild.sort(key=lambda alias: (-len(alias.name), alias.name))
        return cls(
            revision=revision,
            taken_at=taken_at,
            keys_by_hash=MappingProxyType({key.key_hash: key for key in keys}),
            aliases=MappingProxyType(exact),
            wildcards=tuple(wild),
            aliases_by_id=MappingProxyType({alias.id: alias for alias in (*exact.values(), *wild)}),
            homes=MappingProxyType({home.provider_key_id: home for home in homes}),
            seal_key=seal_key,
        )

    def every_alias(self) -> tuple[Alias, ...]:
        """All aliases, wildcards last."""
        return (*self.aliases.values(), *self.wildcards)

    def find(self, name: str) -> tuple[Alias, str] | None:
        """The alias that serves `name` and what its `*` captured ("" for an exact name)."""
        alias = self.aliases.get(name)
        if alias is not None:
            return alias, ""
        for candidate in self.wildcards:
            captured = capture(candidate.name, name)
            if captured is not None:
                return candidate, captured
        return None


class SnapshotHolder:
    """The one mutable reference: the control half publishes, the data half reads."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self._current = snapshot or Snapshot()
        self.loaded = snapshot is not None

    def current(self) -> Snapshot:
        """The newest published snapshot."""
        return self._current

    def publish(self, snapshot: Snapshot) -> None:
        """Make `snapshot` the current one; effective for every exchange that begins afterwards."""
        self._current = snapshot
        self.loaded = True
