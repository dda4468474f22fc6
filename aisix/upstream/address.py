"""Where an Azure OpenAI deployment is: api_base, api_version and deployment name, checked. Pure.

Operators paste what the portal, an SDK sample or another gateway's settings gave them. Whatever
is unambiguous is brought to one canonical form; whatever is not is refused with the text to write
instead. Invariants: parsing a canonical value again gives the same value, nothing but FieldError
is ever raised, and no error text repeats user information or query values that may be secrets.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import date
from urllib.parse import parse_qs, unquote, urlsplit

from aisix.core.addresses import is_link_local
from aisix.errors import FieldError

DEFAULT_API_VERSION = "2024-10-21"
"""The newest dated general-availability version, and the guide's."""

V1 = "v1"
"""Stands for the undated surface `/openai/v1/…`."""

_RESOURCE_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
_DEPLOYMENT_NAME = re.compile(r"[A-Za-z0-9._-]+")
_AZURE_HOST = re.compile(
    r"[a-z0-9_-]{1,63}\.(?:openai|cognitiveservices|services\.ai)\.azure\.(?:com|us|cn)"
)
_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")
_PATH = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:/-]|%[0-9A-Fa-f]{2})*")
_DATED_VERSION = re.compile(r"(\d{4})-(\d{2})-(\d{2})(?:-preview)?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_CHARS = 2048
_EXAMPLE = "https://acme-west.openai.azure.com"


@dataclass(frozen=True, slots=True)
class Address:
    """A checked http(s) URL without user information. `segments` are its non-empty path parts."""

    scheme: str
    host: str
    port: int | None
    segments: tuple[str, ...]
    query: str

    @property
    def origin(self) -> str:
        """Scheme, host and any port that is not the scheme's own."""
        return f"{self.scheme}://{self.host}" + (f":{self.port}" if self.port else "")

    @property
    def is_azure(self) -> bool:
        """Whether this is Azure's own endpoint; a port of its own makes it somebody's relay."""
        return self.port is None and _AZURE_HOST.fullmatch(self.host) is not None


def parse_api_base(api_base: str | None) -> str:
    """Canonical base: an origin with an optional path prefix and no trailing slash."""
    text = (api_base or "").strip()
    if not text:
        raise FieldError(
            f"api_base is missing; write the resource name (acme-west) or its endpoint ({_EXAMPLE})"
        )
    if "://" not in text and _RESOURCE_NAME.fullmatch(text):
        return f"https://{text.lower()}.openai.azure.com"
    address = parse_address(text, "api_base", example=_EXAMPLE)
    base = _base_of(address)
    if "?" in text:
        raise FieldError(_without_query(address, base))
    return base


def refuse_link_local(api_base: str) -> None:
    """Raises FieldError when a canonical base names such an address. Where a host name leads is
    known when it is called only."""
    if is_link_local(urlsplit(api_base).hostname or ""):
        raise FieldError(
            "api_base is a link-local address or that of a metadata service, which could be asked "
            "for this machine's own credentials; set upstream.allow_link_local if it is meant"
        )


def parse_address(text: str, field: str, *, example: str) -> Address:
    """Check `text` as an http(s) URL for `field`. Only the query is left for the caller to judge.

    Raises FieldError. The order of the checks matters: user information is refused before
    anything of the value may be repeated in a text.
    """
    if "@" in text:
        raise FieldError(f"{field} must not contain user information; the key belongs in `secret`")
    if any(character <= " " or character == "\x7f" for character in text):
        raise FieldError(f"{field} contains a space or a control character; remove it")
    if not text.isascii():
        raise FieldError(f"{field} must be ASCII; write an international host in its xn-- form")
    if len(text) > _MAX_CHARS:
        raise FieldError(f"{field} is longer than {_MAX_CHARS} characters")
    if "\\" in text:
        raise FieldError(f"{field} contains a backslash; a URL is written with /")
    if "#" in text:
        raise FieldError(f"{field} must not have a fragment; remove everything from #")
    return _split(text, field, example)


def _split(text: str, field: str, example: str) -> Address:
    scheme, separator, _ = text.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise FieldError(f"{field} needs a scheme: write it as {example}")
    if scheme not in _DEFAULT_PORTS:
        raise FieldError(f"{field} must begin with https:// or http://, as in {example}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise FieldError(f"{field} has no valid host and port; write it as {example}") from None
    if port == 0:
        raise FieldError(f"{field} has port 0; give the real port or none")
    if port == _DEFAULT_PORTS[scheme]:
        port = None
    if not _PATH.fullmatch(parts.path):
        raise FieldError(f"{field} has a path with characters that a URL cannot hold")
    segments = tuple(segment for segment in parts.path.split("/") if segment)
    if any(unquote(segment) in {".", ".."} for segment in segments):
        raise FieldError(f"{field} must not have . or .. in its path")
    host = _host(parts.hostname or "", field, example)
    return Address(scheme=scheme, host=host, port=port, segments=segments, query=parts.query)


def _host(host: str, field: str, example: str) -> str:
    if ":" in host:
        try:
            if "%" in host:
                raise ValueError("a zone means something on one machine only")
            return f"[{ipaddress.IPv6Address(host).compressed}]"
        except ValueError:
            raise FieldError(f"{field} has an IPv6 address that cannot be read") from None
    if not _HOST.fullmatch(host) or len(host) > 253:
        raise FieldError(f"{field} has no valid host name; write it as {example}")
    return host.removesuffix(".")


def _base_of(address: Address) -> str:
    if address.is_azure:
        return f"https://{address.host}"
    return "/".join((address.origin, *_prefix(address.segments)))


def _prefix(segments: tuple[str, ...]) -> tuple[str, ...]:
    """What stands before Azure's own part of a path: `/openai`, alone or with `/v1…` or
    `/deployments…`. Repeated, so that what is left never ends in such a part.
    """
    for index, segment in enumerate(segments):
        following = segments[index + 1 : index + 2]
        if segment == "openai" and following in {(), ("v1",), ("deployments",)}:
            return _prefix(segments[:index])
    return segments


def _without_query(address: Address, base: str) -> str:
    """The refusal of a pasted request URL: the same settings, each in its own field."""
    fixes = [f'api_base "{base}"']
    deployment = _deployment_in(address.segments)
    if deployment is not None:
        fixes.append(f'model_name "{deployment}" (the deployment) on the model')
    version = _version_in(address)
    if version is not None:
        fixes.append(f'api_version "{version}"')
    return f"api_base must not have a query string; write {', '.join(fixes)}"


def _deployment_in(segments: tuple[str, ...]) -> str | None:
    for first, second, name in zip(segments, segments[1:], segments[2:], strict=False):
        if (first, second) == ("openai", "deployments"):
            plain = unquote(name)
            return plain if _DEPLOYMENT_NAME.fullmatch(plain) else None
    return None


def _version_in(address: Address) -> str | None:
    pairs = zip(address.segments, address.segments[1:], strict=False)
    if ("openai", "v1") in pairs:
        return V1
    for value in parse_qs(address.query).get("api-version", []):
        try:
            return parse_api_version(value)
        except FieldError:
            continue
    return None


def parse_api_version(api_version: str | None) -> str:
    """Checked api-version: a dated one or "v1"; the default for None. Raises FieldError."""
    if api_version is None:
        return DEFAULT_API_VERSION
    text = api_version.strip()
    lowered = text.lower()
    if lowered == V1:
        return V1
    if lowered in {"preview", "latest"}:
        raise FieldError(f'api_version "{lowered}" names no version; use "v1"')
    pasted = re.fullmatch(r"\??(?:.*[?&])?api-version=([0-9A-Za-z-]{1,32})(?:&.*)?", lowered)
    if pasted:
        raise FieldError(f'api_version is the bare value; write "{pasted[1]}"')
    if not _is_dated_version(lowered):
        raise FieldError(
            'api_version must be a dated version such as "2024-10-21" or '
            f'"2025-04-01-preview", or "v1"; leave it out for {DEFAULT_API_VERSION}'
        )
    return lowered


def _is_dated_version(text: str) -> bool:
    match = _DATED_VERSION.fullmatch(text)
    if match is None or not text.isascii():
        return False
    try:
        date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        return False
    return True


def check_deployment_name(name: str) -> None:
    """Azure's own rule: letters, digits, `.`, `_` and `-`. Raises FieldError."""
    if not name:
        raise FieldError("the deployment name is empty")
    if not _DEPLOYMENT_NAME.fullmatch(name) or name in {".", ".."}:
        raise FieldError(
            "the deployment name may hold only letters, digits, '.', '_' and '-': "
            "write the name of the deployment, not its URL or its underlying model's title"
        )
