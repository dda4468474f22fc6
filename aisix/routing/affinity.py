"""Response ids that remember where they were made. Pure.

A response is stored at the resource that made it, and what follows it must go there (`GET`,
`previous_response_id`), whichever worker or replica serves it and whenever. So the id that a caller
gets is sealed: it holds the resource, alias, deployment, api-version and the upstream's own id,
encrypted and authenticated by AES-SIV (RFC 5297) together with the caller key's id. The same id
seals to the same text, so that it can be compared, and nothing needs to be stored. Another caller
key, or a changed letter, opens nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace

from aisix.core.resources import Alias, ApiKey, Deployment
from aisix.core.snapshot import Snapshot
from aisix.errors import BadRequest, Forbidden, NotFound

PREFIX = "resp_"
MAX_ID_CHARS = 2048
_SHOWN_CHARS = 256
PREVIOUS = "previous_response_id"

_LABEL = b"aisix response ids 1"
_SEPARATOR = "\0"
_PARTS = 6


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a response was made. `requested` is the name the caller asked for then (an alias, or
    what a wildcard matched), `api_version` that of then, `id` the upstream's own."""

    provider_key_id: str
    alias_id: str
    requested: str
    deployment_name: str
    api_version: str
    id: str


class Affinity:
    """Seals and opens response ids under one key."""

    def __init__(self, key: bytes) -> None:
        # not at the top: what makes no use of it need not load it (8 MB)
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV  # noqa: PLC0415

        self.key = key
        self._siv = AESSIV(hashlib.sha512(_LABEL + key).digest())

    def seal(self, origin: Origin, caller: ApiKey) -> str:
        """The id that `caller` gets to see."""
        text = _SEPARATOR.join(astuple(origin))
        sealed = self._siv.encrypt(text.encode(), [caller.id.encode()])
        return PREFIX + base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def sealer(
        self, place: Origin, caller: ApiKey, *, named: Origin | None, shown: str
    ) -> Callable[[str], str]:
        """Seals the ids of responses at `place`. The one that the request `named` comes back as it
        was `shown`, whatever has become of its model since."""

        def seal(id: str) -> str:
            if named is not None and id == named.id:
                return shown
            return self.seal(replace(place, id=id), caller)

        return seal

    def open(self, id: str, caller: ApiKey) -> Origin | None:
        """Where the response with this id was made; None when `caller` was never given it."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - as above

        if not id.startswith(PREFIX) or len(id) > MAX_ID_CHARS or not id.isascii():
            return None
        text = id.removeprefix(PREFIX)
        try:
            sealed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            parts = self._siv.decrypt(sealed, [caller.id.encode()]).decode().split(_SEPARATOR)
        except (binascii.Error, ValueError, InvalidTag):
            return None
        return Origin(*parts) if len(parts) == _PARTS else None


def place_of(alias: Alias, deployment: Deployment, requested: str) -> Origin:
    """Where the responses of a request are made; their ids are still to come."""
    return Origin(
        deployment.provider_key_id,
        alias.id,
        requested,
        deployment.name,
        deployment.api_version,
        id="",
    )


def locate(
    origin: Origin | None, snapshot: Snapshot, caller: ApiKey, *, shown: str
) -> tuple[Alias, Deployment]:
    """The alias that an existing response belongs to, and the deployment that made it.

    Raises NotFound, Forbidden.
    """
    alias = snapshot.aliases_by_id.get(origin.alias_id) if origin is not None else None
    deployment = _home(origin, alias, snapshot) if origin is not None and alias else None
    if origin is None or alias is None or deployment is None:
        raise NotFound(f"Response with id '{shown[:_SHOWN_CHARS]}' not found.", param="response_id")
    if not caller.allows(origin.requested):
        raise Forbidden(f'API key is not allowed to use model "{origin.requested}"', param="model")
    return alias, deployment


def follow(
    origin: Origin | None, alias: Alias, deployment: Deployment, snapshot: Snapshot, *, shown: str
) -> Deployment:
    """The deployment for a request to `alias` that goes on from an earlier response.

    That is `deployment`, the alias's own, when it is at the response's resource, and the one that
    made the response when the alias leads elsewhere by now. Raises NotFound; BadRequest for an
    alias whose resource cannot know the response.
    """
    if origin is not None and origin.provider_key_id == deployment.provider_key_id:
        return deployment
    home = None
    if origin is not None and origin.alias_id == alias.id:
        home = _home(origin, alias, snapshot)
    elif origin is not None and origin.provider_key_id in snapshot.homes:
        raise BadRequest(
            f"{PREVIOUS}: that response was made by a model at another resource than "
            f'"{alias.name}"; go on with the model that made it, or send the conversation anew',
            param=PREVIOUS,
        )
    if home is None:
        raise NotFound(
            f"Previous response with id '{shown[:_SHOWN_CHARS]}' not found.",
            param=PREVIOUS,
            code="previous_response_not_found",
        )
    return home


def _home(origin: Origin, alias: Alias, snapshot: Snapshot) -> Deployment | None:
    """The deployment that made a response, by today's address and credential of its resource. The
    alias's own api-version holds for as long as it leads there; who else would know one that has
    responses?"""
    if alias.deployment.provider_key_id == origin.provider_key_id:
        return replace(alias.deployment, name=origin.deployment_name)
    home = snapshot.homes.get(origin.provider_key_id)
    if home is None:
        return None
    return replace(home, name=origin.deployment_name, api_version=origin.api_version)
