"""Bootstrap configuration: what a start reads once from a YAML file and the environment.

Every setting is declared once, as a field of a frozen dataclass, with its kind, default, unit and
one line of text. Parsing, the start-up print, `config/config.reference.yaml` and the table of
`docs/configuration.md` all come from those declarations. Resources (keys, aliases, limits) are
the other plane: they live in the store and never here.

Invariants: `parse` is pure (environment and file reader are handed in) and reports every problem
at once, each with its path; nothing unknown is ignored; a secret is never part of a message, a
`repr` or the start-up print. Only `load` and `read_file` do I/O.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import ipaddress
import re
import ssl
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import yaml

SHIPPED_ADMIN_KEY = "admin-local-only-change-me"
"""The admin key of `config/config.yaml`. Everybody knows it, so it opens loopback only."""

TOLERATED_SECTIONS = frozenset({"etcd", "cache", "managed"})
"""Sections of the original for parts we do not have: accepted, named in one start-up warning."""

UNSUPPORTED = frozenset(
    {
        "observability.metrics.buckets",
        "observability.tracing",
        "proxy.real_ip",
        "ratelimit.concurrency_ttl_secs",
        "ratelimit.redis",
        "request",
        "resources_file",
        "upstream.retries",
        "upstream.tcp_keepalive_interval_secs",
        "upstream.tcp_keepalive_retries",
        "upstream.tls.client_cert_file",
        "upstream.tls.client_key_file",
    }
)
"""Settings of the original whose feature is not built: refused, since ignoring would mislead."""

_PREFIX = "AISIX_"
_NOT_SUPPORTED = "is not supported by this version"
_MAX_MS = 2**31 - 1  # libcurl's timeouts are C longs of at least 32 bits
_MAX_BYTES = 2**53
_MAX_CONNECTIONS = 1_000_000
_MAX_WORKERS = 64
_MAX_KEEPALIVE_S = 32_767  # what Linux takes as TCP_KEEPIDLE
_DAY_S = 86_400
_RESERVED_ID_HEADERS = frozenset(
    {
        "api-key",
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "host",
        "proxy-authorization",
        "transfer-encoding",
        "x-api-key",
        "x-goog-api-key",
    }
)
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_CONNECT_TO_FORM = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]*):([0-9]{0,5})"
    r":(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]*):([0-9]{0,5})"
)

Reader = Callable[[str], bytes]


class ConfigError(Exception):
    """The configuration cannot be used. `problems` holds one line for each thing to mend."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class _Bad(ValueError):
    """A value does not fit its setting: (place inside the value, text) pairs, never a secret."""

    def __init__(self, *problems: tuple[str, str]) -> None:
        super().__init__(problems)
        self.problems = problems


def _bad(text: str) -> _Bad:
    return _Bad(("", text))


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener binds. `host` has no brackets; port 0 lets the system choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """`127.0.0.1:3000`, `[::1]:3000` or `localhost:3000`. Raises ValueError."""
        host, _, port = text.rpartition(":")
        if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError(text)
        if host.startswith("[") and host.endswith("]"):
            return cls(str(ipaddress.IPv6Address(host[1:-1])), int(port))
        if not _HOST.fullmatch(host):
            raise ValueError(text)
        if not host.strip("0123456789."):
            host = str(ipaddress.IPv4Address(host))
        return cls(host.lower(), int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def clashes(self, other: Address) -> bool:
        """Whether both cannot be bound at once. A wildcard takes the port of its whole family."""
        if self.port == 0 or self.port != other.port:
            return False
        mine, theirs = (
            "127.0.0.1" if address.host == "localhost" else address.host
            for address in (self, other)
        )
        same_family = (":" in mine) == (":" in theirs)
        return mine == theirs or (same_family and not {mine, theirs}.isdisjoint({"0.0.0.0", "::"}))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ForwardProxy:
    """A proxy that calls go through. `url` is scheme, host and port only."""

    url: str
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> ForwardProxy:
        """`http://[user:password@]host:port`, or `https://…`. Raises ValueError, with no text."""
        parts = urlsplit(text)
        host = parts.hostname or ""
        literal = f"[{host}]" if ":" in host else host
        if parts.scheme not in {"http", "https"} or not parts.port or parts.path not in {"", "/"}:
            raise ValueError
        if parts.query or parts.fragment or not (":" in host or _HOST.fullmatch(host)):
            raise ValueError
        username = password = None
        if "@" in parts.netloc:
            username, password = unquote(parts.username or ""), unquote(parts.password or "")
            if not username or ":" in username or not (username + password).isprintable():
                raise ValueError
        return cls(f"{parts.scheme}://{literal}:{parts.port}", username, password)

    def __str__(self) -> str:
        return self.url if self.username is None else self.url.replace("://", "://***@")


# ── what a setting can hold ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Sources:
    """What references lead to."""

    environ: Mapping[str, str]
    read_file: Reader

    def read(self, path: str) -> bytes:
        try:
            return self.read_file(path)
        except (OSError, ValueError) as problem:
            reason = getattr(problem, "strerror", None) or problem
            raise _bad(f"cannot read {path}: {reason}") from None

    def resolve(self, text: str) -> str | None:
        """What `env:NAME` or `file:/path` leads to; None when `text` is no reference."""
        scheme, colon, rest = text.partition(":")
        if not colon or scheme not in {"env", "file"}:
            return None
        if scheme == "file":
            found = self.read(rest).decode("utf-8", "replace").strip()
            missing = f"file {rest} is empty"
        elif re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", rest):
            found = self.environ.get(rest, "")
            missing = f"environment variable {rest} is not set"
        else:
            raise _bad("env: must be followed by the name of an environment variable")
        if not found:
            raise _bad(missing)
        return found


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of value. `convert` takes what a file holds; `from_text` makes that of a variable's
    text, handing on what it cannot read so that `convert` says what is wrong.
    """

    name: str
    convert: Callable[[Any, _Sources], object]
    from_text: Callable[[str], object] = str
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one setting."""

    default: Any
    kind: Kind
    doc: str
    unit: str


def _shown(value: object) -> str:
    """A value in a message, cut short: never used for secrets."""
    try:
        text = "null" if value is None else repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number that is far too large"
    return text if len(text) <= 80 else text[:80] + "…"


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise _bad(f"must be a string, not {_shown(value)}")
    if not value.strip() or not value.isprintable():
        raise _bad("must not be empty or hold control characters")
    return value


def _whole(minimum: int, maximum: int) -> Kind:
    def convert(value: object, _: _Sources) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _bad(f"must be a whole number, not {_shown(value)}")
        if value < minimum:
            raise _bad(f"must be ≥ {minimum}, not {_shown(value)}")
        if value > maximum:
            raise _bad(f"must be ≤ {maximum}, not {_shown(value)}")
        return value

    def from_text(text: str) -> object:
        return int(text) if re.fullmatch("[+-]?[0-9]{1,18}", text) else text

    return Kind(f"whole number ≥ {minimum}", convert, from_text)


def _workers() -> Kind:
    """A number of processes, or "auto": as many as the machine has room for."""
    number = _whole(1, _MAX_WORKERS)

    def convert(value: object, sources: _Sources) -> object:
        if value == "auto":
            return value
        if isinstance(value, str):
            raise _bad(f"must be a whole number ≥ 1 or auto, not {_shown(value)}")
        return number.convert(value, sources)

    return Kind("whole number ≥ 1, or auto", convert, number.from_text)


def _boolean() -> Kind:
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}

    def convert(value: object, _: _Sources) -> bool:
        if not isinstance(value, bool):
            raise _bad(f"must be true or false, not {_shown(value)}")
        return value

    return Kind("true or false", convert, lambda text: words.get(text.lower(), text))


def _choice(*allowed: str, later: tuple[str, ...] = ()) -> Kind:
    """One of a few words; `later` names those of the original that are not built."""

    def convert(value: object, _: _Sources) -> object:
        if value in later:
            raise _bad(f"{value} {_NOT_SUPPORTED}")
        if value not in allowed:
            raise _bad(f"must be {' or '.join(allowed)}, not {_shown(value)}")
        return value

    return Kind(", ".join(allowed), convert)


def _text(name: str, pattern: str, rule: str) -> Kind:
    def convert(value: object, _: _Sources) -> str:
        text = _string(value)
        if not re.fullmatch(pattern, text):
            raise _bad(f"must be {rule}, not {_shown(text)}")
        return text

    return Kind(name, convert)


def _list_of(name: str, item: Callable[[Any, _Sources], object], *, secret: bool = False) -> Kind:
    """A list; every bad item is named by its index. Variables separate items by commas."""

    def convert(value: object, sources: _Sources) -> tuple[object, ...]:
        if not isinstance(value, list | tuple):
            raise _bad("must be a list" if secret else f"must be a list, not {_shown(value)}")
        items: list[object] = []
        problems: list[tuple[str, str]] = []
        for index, entry in enumerate(value):
            try:
                items.append(item(entry, sources))
            except _Bad as bad:
                problems += [(f"[{index}]{place}", text) for place, text in bad.problems]
        if problems:
            raise _Bad(*problems)
        return tuple(items)

    def from_text(text: str) -> object:
        return [part.strip() for part in text.split(",") if part.strip()]

    return Kind(name, convert, from_text, secret)


def _or_null(kind: Kind) -> Kind:
    """`kind`, or nothing: null in a file, empty in the environment."""
    return Kind(
        f"{kind.name}, or null",
        lambda value, sources: None if value is None else kind.convert(value, sources),
        lambda text: kind.from_text(text) if text else None,
        kind.secret,
    )


def _as_address(value: object, _: _Sources) -> Address:
    try:
        return Address.parse(_string(value))
    except ValueError:
        rule = "must be host:port such as 127.0.0.1:3000 or [::1]:3000"
        raise _bad(f"{rule}, not {_shown(value)}") from None


def _as_file(value: object, sources: _Sources) -> str:
    path = _string(value)
    sources.read(path)
    return path


def _as_ca_file(value: object, sources: _Sources) -> str:
    path = _string(value)
    text = sources.read(path).decode("ascii", "ignore")  # bundles have comments in any language
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        raise _bad(f"{path} holds no PEM certificates") from None
    return path


def _as_id_header(value: object, _: _Sources) -> str:
    name = _string(value).lower()
    if not _HEADER_NAME.fullmatch(name):
        raise _bad(f"must be a header name, not {_shown(value)}")
    if name in _RESERVED_ID_HEADERS:
        raise _bad(f"{name} is reserved: its value must not become a request id")
    return name


def _as_connect_to(value: object, _: _Sources) -> str:
    text = _string(value)
    match = _CONNECT_TO_FORM.fullmatch(text)
    usable = match is not None and (match[2] or match[3])
    if not usable or any(int(port or 0) > 65535 for port in match.group(1, 3)):  # type: ignore[union-attr]
        rule = "must be HOST:PORT:TO_HOST:TO_PORT such as example.com:443:127.0.0.1:8443"
        raise _bad(f"{rule}, not {_shown(value)}")
    return text


def _as_proxy(value: object, sources: _Sources) -> ForwardProxy:
    text = value if isinstance(value, str) else ""
    try:
        return ForwardProxy.parse(sources.resolve(text) or text)
    except _Bad:
        raise
    except ValueError:
        raise _bad(
            "must be http://host:port or https://host:port, with user:password@ before the host if"
            " need be (other characters than letters and digits in them percent-encoded), or a"
            " reference to that, env:NAME or file:/path"
        ) from None


def _as_no_proxy(value: object, _: _Sources) -> str:
    text = _string(value)
    if text == "*" or _HOST.fullmatch(text.removeprefix(".")):
        return text
    try:
        return str(ipaddress.ip_network(text, strict=False) if "/" in text else _plain_ip(text))
    except ValueError:
        rule = "must be a host name, a suffix such as .corp.example, an address, a CIDR range or *"
        raise _bad(f"{rule}, not {_shown(value)}") from None


def _plain_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))


def _as_admin_key(value: object, sources: _Sources) -> str:
    if not isinstance(value, str):
        raise _bad("must be a string: the key itself, env:NAME or file:/path")
    found = sources.resolve(value)
    key = value if found is None else found
    if not re.fullmatch("[!-~]+", key):
        raise _bad("must be visible ASCII characters without spaces: it travels in a header")
    return key


def _as_encryption_key(value: object, sources: _Sources) -> bytes:
    found = sources.resolve(value) if isinstance(value, str) else None
    if found is None:
        raise _bad("must be a reference, env:NAME or file:/path, never the key itself")
    if re.fullmatch("[0-9A-Fa-f]{64}", found):
        return bytes.fromhex(found)
    try:
        key = base64.b64decode(found, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise _bad(
            "must lead to 32 bytes written as base64 or as 64 hexadecimal digits;"
            " `openssl rand -base64 32` makes one"
        )
    return key


_ADDRESS = Kind("host:port", _as_address)
_ADMIN_KEYS = _list_of("list of secrets", _as_admin_key, secret=True)
_BACKEND = _choice("memory", later=("redis",))
_BOOL = _boolean()
_BYTES = _whole(0, _MAX_BYTES)
_CA_FILE = _or_null(Kind("file path", _as_ca_file))
_CONNECTIONS = _whole(0, _MAX_CONNECTIONS)
_CONNECT_TO = _list_of("list of HOST:PORT:TO_HOST:TO_PORT", _as_connect_to)
_FILE = _or_null(Kind("file path", _as_file))
_ID_HEADERS = _list_of("list of header names", _as_id_header)
_KEEPALIVE = _whole(0, _MAX_KEEPALIVE_S)
_LEVEL = _choice("debug", "info", "warning", "error")
_MS = _whole(0, _MAX_MS)
_NO_PROXY = _list_of("list of hosts, .suffixes, addresses, CIDR ranges", _as_no_proxy)
_PATH = Kind("file path", lambda value, _: _string(value))
_PROXY = _or_null(Kind("URL, env:NAME or file:/path", _as_proxy))
_SEALING_KEY = _or_null(Kind("env:NAME or file:/path", _as_encryption_key, secret=True))
_SECS = _whole(0, _DAY_S)
_TOKENS = _whole(0, 10_000_000)
_URL_PATH = _text("URL path", r"/[A-Za-z0-9._~/-]*", "a path such as /metrics")
_WORKERS = _workers()
_WORD = _text("one word", r"[^\s]{1,128}", "one word of at most 128 characters")


def _as(kind: Kind, doc: str, unit: str = "") -> dict[str, object]:
    """The metadata of a setting."""
    return {"kind": kind, "doc": doc, "unit": unit}


def _section(doc: str) -> dict[str, object]:
    """The metadata of a field that holds further settings."""
    return {"section": True, "doc": doc}


# ── the settings ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ListenerTls:
    """The certificate of a listener; both files or neither."""

    cert_file: str | None = field(
        default=None, metadata=_as(_FILE, "Certificate chain of the listener, PEM.")
    )
    key_file: str | None = field(
        default=None, metadata=_as(_FILE, "Private key of the certificate, PEM.")
    )

    @property
    def enabled(self) -> bool:
        """Whether the listener speaks TLS."""
        return self.cert_file is not None


@dataclass(frozen=True, slots=True)
class RequestId:
    """Where a request's id may come from."""

    accept_headers: tuple[str, ...] = field(
        default=("x-aisix-request-id",),
        metadata=_as(
            _ID_HEADERS, "Caller headers taken over as the request id; the first usable one wins."
        ),
    )


@dataclass(frozen=True, slots=True)
class Proxy:
    """The listener that applications call."""

    addr: Address = field(
        default=Address("127.0.0.1", 3000),
        metadata=_as(_ADDRESS, "Address of the proxy API; port 0 picks one."),
    )
    request_body_limit_bytes: int = field(
        default=33_554_432,
        metadata=_as(
            _BYTES,
            "Largest request body that is read; a larger one gets 413. 0 = no limit.",
            "bytes",
        ),
    )
    upload_limit_bytes: int = field(
        default=1_073_741_824,
        metadata=_as(
            _BYTES,
            "Largest request body that passes unread (files, audio, images). 0 = no limit.",
            "bytes",
        ),
    )
    workers: int | str = field(
        default="auto",
        metadata=_as(
            _WORKERS, "Processes that serve; auto = what CPUs and memory allow, at most 8."
        ),
    )
    max_connections: int = field(
        default=0,
        metadata=_as(
            _CONNECTIONS, "Open caller connections per worker; more get 503. 0 = no limit."
        ),
    )
    request_id: RequestId = field(
        default_factory=RequestId, metadata=_section("The id of a request.")
    )
    tls: ListenerTls = field(
        default_factory=ListenerTls, metadata=_section("TLS of the proxy API.")
    )


@dataclass(frozen=True, slots=True)
class Admin:
    """The listener that operators call. `admin_keys` holds resolved plaintext."""

    addr: Address = field(
        default=Address("127.0.0.1", 3001),
        metadata=_as(_ADDRESS, "Address of the admin API; keep it on loopback."),
    )
    enabled: bool = field(
        default=True, metadata=_as(_BOOL, "Whether the admin API is served at all.")
    )
    admin_keys: tuple[str, ...] = field(
        default=(),
        repr=False,
        metadata=_as(
            _ADMIN_KEYS, "Keys of the admin API, each plain, env:NAME or file:/path. Required."
        ),
    )
    tls: ListenerTls = field(
        default_factory=ListenerTls, metadata=_section("TLS of the admin API.")
    )


@dataclass(frozen=True, slots=True)
class Prometheus:
    """The listener that Prometheus scrapes."""

    enabled: bool = field(default=True, metadata=_as(_BOOL, "Whether metrics are served."))
    path: str = field(default="/metrics", metadata=_as(_URL_PATH, "Path of the metrics."))
    addr: Address = field(
        default=Address("127.0.0.1", 9090),
        metadata=_as(_ADDRESS, "Address of the metrics, which ask for no key."),
    )


@dataclass(frozen=True, slots=True)
class Metrics:
    """How metrics leave the process."""

    prometheus: Prometheus = field(
        default_factory=Prometheus, metadata=_section("The listener that Prometheus scrapes.")
    )


@dataclass(frozen=True, slots=True)
class Observability:
    """Logs and metrics."""

    service_name: str = field(
        default="aisix", metadata=_as(_WORD, "Name of this service in its logs.")
    )
    log_level: str = field(default="info", metadata=_as(_LEVEL, "Least severe record logged."))
    access_log: bool = field(
        default=True, metadata=_as(_BOOL, "Whether each request leaves one log line.")
    )
    metrics: Metrics = field(default_factory=Metrics, metadata=_section("How metrics are served."))


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """Whom we trust to be Azure."""

    ca_file: str | None = field(
        default=None, metadata=_as(_CA_FILE, "CA certificates instead of the system's, PEM.")
    )
    verify: bool = field(
        default=True,
        metadata=_as(_BOOL, "Whether certificates are checked; false only on a test bench."),
    )


@dataclass(frozen=True, slots=True)
class Upstream:
    """The wire to Azure OpenAI."""

    connect_timeout_ms: int = field(
        default=5_000,
        metadata=_as(_MS, "Longest wait for a connection, TLS included. 0 = none.", "ms"),
    )
    first_byte_timeout_ms: int = field(
        default=600_000,
        metadata=_as(_MS, "Longest wait for the first byte of an answer. 0 = none.", "ms"),
    )
    stream_timeout_ms: int = field(
        default=300_000,
        metadata=_as(_MS, "Longest gap in a stream or a realtime session. 0 = none.", "ms"),
    )
    timeout_ms: int = field(
        default=600_000,
        metadata=_as(_MS, "Longest whole call that is not a stream. 0 = none.", "ms"),
    )
    http2: bool = field(
        default=False, metadata=_as(_BOOL, "Whether HTTP/2 is offered; otherwise HTTP/1.1.")
    )
    connect_to: tuple[str, ...] = field(
        default=(),
        metadata=_as(_CONNECT_TO, "Connect elsewhere under the same host name (libcurl's form)."),
    )
    proxy: ForwardProxy | None = field(
        default=None,
        metadata=_as(
            _PROXY, "Proxy for all calls, Entra's too; http://[user:password@]host:port or https."
        ),
    )
    no_proxy: tuple[str, ...] = field(
        default=(), metadata=_as(_NO_PROXY, "Hosts that are called without the proxy; * is all.")
    )
    allow_link_local: bool = field(
        default=False,
        metadata=_as(
            _BOOL, "Whether upstreams may have link-local addresses or those of metadata services."
        ),
    )
    tls: UpstreamTls = field(default_factory=UpstreamTls, metadata=_section("TLS towards Azure."))
    pool_idle_timeout_secs: int = field(
        default=90,
        metadata=_as(_SECS, "Idle connections older than this are not used again.", "seconds"),
    )
    pool_max_idle_per_host: int = field(
        default=1_024,
        metadata=_as(
            _CONNECTIONS,
            "Open connections (busy ones too) above which idle ones go. 0 = none kept.",
        ),
    )
    tcp_keepalive_secs: int = field(
        default=60, metadata=_as(_KEEPALIVE, "Idle time before TCP keep-alive. 0 = off.", "seconds")
    )


@dataclass(frozen=True, slots=True)
class Downstream:
    """The wire to callers."""

    header_timeout_secs: int = field(
        default=30,
        metadata=_as(_SECS, "Longest wait for the whole head of a request. 0 = none.", "seconds"),
    )
    body_timeout_secs: int = field(
        default=60,
        metadata=_as(_SECS, "Longest gap between pieces of a request body. 0 = none.", "seconds"),
    )
    idle_timeout_secs: int = field(
        default=600,
        metadata=_as(_SECS, "Longest rest of a connection between requests. 0 = none.", "seconds"),
    )
    sse_keepalive_interval_secs: int = field(
        default=15,
        metadata=_as(_SECS, "Silence on a stream before a comment is sent. 0 = off.", "seconds"),
    )


@dataclass(frozen=True, slots=True)
class Ratelimit:
    """Where limits are counted; the limits themselves are resources."""

    backend: str = field(default="memory", metadata=_as(_BACKEND, "Where the counters live."))
    assumed_output_tokens: int = field(
        default=1_000,
        metadata=_as(_TOKENS, "Reserved per choice when a request sets no limit.", "tokens"),
    )


@dataclass(frozen=True, slots=True)
class Store:
    """The database of the resources. `encryption_key` holds 32 resolved bytes."""

    path: str = field(
        default="data/aisix.db",
        metadata=_as(_PATH, "SQLite file, relative to the working directory."),
    )
    encryption_key: bytes | None = field(
        default=None,
        repr=False,
        metadata=_as(_SEALING_KEY, "Key that seals stored secrets. null = a file beside path."),
    )


@dataclass(frozen=True, slots=True)
class Shutdown:
    """How a stop goes."""

    min_drain_secs: int = field(
        default=0,
        metadata=_as(_SECS, "How long SIGTERM leaves new requests accepted.", "seconds"),
    )
    max_drain_secs: int = field(
        default=0,
        metadata=_as(_SECS, "Longest wait for running requests. 0 = until they end.", "seconds"),
    )


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration, checked. `origins` says for each path where its value came from:
    "default", "file" or "environment".
    """

    proxy: Proxy = field(
        default_factory=Proxy, metadata=_section("The proxy API: what applications call.")
    )
    admin: Admin = field(
        default_factory=Admin, metadata=_section("The admin API: what operators call.")
    )
    observability: Observability = field(
        default_factory=Observability, metadata=_section("Logs and metrics.")
    )
    upstream: Upstream = field(
        default_factory=Upstream, metadata=_section("The connection to Azure OpenAI.")
    )
    downstream: Downstream = field(
        default_factory=Downstream, metadata=_section("The connection to callers.")
    )
    ratelimit: Ratelimit = field(
        default_factory=Ratelimit, metadata=_section("How limits are counted.")
    )
    store: Store = field(default_factory=Store, metadata=_section("The database of the resources."))
    shutdown: Shutdown = field(
        default_factory=Shutdown, metadata=_section("How the gateway stops.")
    )
    ignored_sections: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}), repr=False, compare=False
    )

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no log may hold."""
        proxy = self.upstream.proxy
        password = proxy.password if proxy is not None else None
        return (*self.admin.admin_keys, password) if password else self.admin.admin_keys


def outline(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, Setting | str]]:
    """Every path in order: a section with its text, then what is in it."""
    for declared in fields(cls):
        path = prefix + declared.name
        if "kind" in declared.metadata:
            yield path, Setting(default=declared.default, **declared.metadata)
        elif "section" in declared.metadata:
            yield path, declared.metadata["doc"]
            yield from outline(_class_of(declared), f"{path}.")


def _class_of(section: Field[Any]) -> type:
    """The dataclass of a section: its default is an instance with all defaults."""
    return cast(type, section.default_factory)


def settings() -> dict[str, Setting]:
    """The declaration of every setting, by path, in order."""
    return {path: entry for path, entry in outline() if isinstance(entry, Setting)}


def variable(path: str) -> str:
    """The environment variable that sets `path`: `proxy.addr` → `AISIX_PROXY__ADDR`."""
    return _PREFIX + path.replace(".", "__").upper()


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


class _Collector:
    """Gathers what file and environment set, before any value is looked at."""

    def __init__(self) -> None:
        self.settings = settings()
        self.sections = {path for path, entry in outline() if isinstance(entry, str)}
        self.written: dict[str, tuple[str, object, str]] = {}
        """path → (how messages call it, value, origin); the environment overwrites the file."""
        self.ignored: set[str] = set()
        self.problems: list[str] = []

    def add_file(self, node: object, prefix: str = "") -> None:
        if node is None:
            return
        if not isinstance(node, Mapping):
            place = prefix.rstrip(".") or "configuration"
            kind = type(node).__name__  # not the value: it may be a misplaced key
            self.problems.append(f"{place}: must be a mapping of settings, not {kind}")
            return
        for key, value in node.items():
            path = f"{prefix}{key}"
            if not isinstance(key, str) or "." in key:
                text = "unknown key; nest sections instead of writing dots"
                self.problems.append(f"{path[:200]}: {text}")
            elif path in self.settings:
                self.written[path] = (path, value, "file")
            elif path in self.sections:
                self.add_file(value, f"{path}.")
            elif path in TOLERATED_SECTIONS:
                self.ignored.add(path)
            elif path in UNSUPPORTED:
                self.problems.append(f"{path}: {_NOT_SUPPORTED}")
            else:
                hint = _did_you_mean(path, [*self.settings, *self.sections])
                self.problems.append(f"{path[:200]}: unknown key{hint}")

    def add_environment(self, environ: Mapping[str, str]) -> None:
        for name in sorted(environ):
            if not name.startswith(_PREFIX) or "__" not in name.removeprefix(_PREFIX):
                continue
            path = name.removeprefix(_PREFIX).lower().replace("__", ".")
            exact = name == variable(path)
            parents = {path[:index] for index, char in enumerate(path) if char == "."} | {path}
            if exact and path in self.settings:
                value = self.settings[path].kind.from_text(environ[name])
                self.written[path] = (name, value, "environment")
            elif exact and not parents.isdisjoint(TOLERATED_SECTIONS):
                self.ignored |= parents & TOLERATED_SECTIONS
            elif exact and not parents.isdisjoint(UNSUPPORTED):
                self.problems.append(f"{name}: {_NOT_SUPPORTED}")
            elif exact and path in self.sections:
                first = next(known for known in self.settings if known.startswith(f"{path}."))
                text = f"is a section; set what is in it, such as {variable(first)}"
                self.problems.append(f"{name}: {text}")
            else:
                close = difflib.get_close_matches(name.upper(), map(variable, self.settings), 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                self.problems.append(f"{name}: unknown variable{hint}")


def _did_you_mean(path: str, known: list[str]) -> str:
    """A hint for a key that does not exist: a sibling, the same name elsewhere, a like path."""
    parent, _, name = path.rpartition(".")
    siblings = {
        other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == parent
    }
    close = difflib.get_close_matches(name, siblings, 1)
    found = [siblings[match] for match in close]
    found += [other for other in known if other.rpartition(".")[2] == name]
    found += difflib.get_close_matches(path, known, 1)
    return f"; did you mean {found[0]}?" if found else ""


def _no_files(path: str) -> bytes:
    raise FileNotFoundError(None, "no file reader was given", path)


def parse(document: object, environ: Mapping[str, str], *, read_file: Reader = _no_files) -> Config:
    """The configuration that a loaded document and an environment spell.

    `read_file` follows `file:` references and shows that named files exist. Raises ConfigError
    with every problem there is.
    """
    collected = _Collector()
    collected.add_file(document)
    collected.add_environment(environ)
    sources = _Sources(environ, read_file)
    problems = collected.problems
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    failed: set[str] = set()
    for path, setting in collected.settings.items():
        name, value, origin = collected.written.get(path, (path, setting.default, "default"))
        values[path], origins[path] = setting.default, origin
        if origin == "default":
            continue
        try:
            values[path] = setting.kind.convert(value, sources)
        except _Bad as bad:
            failed.add(path)
            problems += [f"{name}{place}: {text}" for place, text in bad.problems]
    config: Config = _build(Config, "", values)
    problems += [text for paths, text in _contradictions(config) if failed.isdisjoint(paths)]
    if problems:
        raise ConfigError(problems)
    ignored = tuple(sorted(collected.ignored))
    return replace(config, ignored_sections=ignored, origins=MappingProxyType(origins))


def _build(cls: type, prefix: str, values: Mapping[str, object]) -> Any:
    """An instance of a section with the checked values below `prefix`."""
    arguments: dict[str, object] = {}
    for declared in fields(cls):
        path = prefix + declared.name
        if "kind" in declared.metadata:
            arguments[declared.name] = values[path]
        elif "section" in declared.metadata:
            arguments[declared.name] = _build(_class_of(declared), f"{path}.", values)
    return cls(**arguments)


def _contradictions(config: Config) -> Iterator[tuple[set[str], str]]:
    """Values that are good alone and wrong together: the paths involved and the problem."""
    admin = config.admin
    if admin.enabled and not admin.admin_keys:
        yield (
            {"admin.enabled", "admin.admin_keys"},
            "admin.admin_keys: at least one key is needed while admin.enabled is true",
        )
    if admin.enabled and SHIPPED_ADMIN_KEY in admin.admin_keys and not admin.addr.is_loopback:
        yield (
            {"admin.enabled", "admin.admin_keys", "admin.addr"},
            f"admin.addr: {admin.addr} can be reached from other machines while admin.admin_keys"
            f" holds the key that ships with the gateway; set a key of your own, such as"
            f' admin_keys: ["env:MY_ADMIN_KEY"], or bind 127.0.0.1:{admin.addr.port}',
        )
    for name, tls in (("proxy.tls", config.proxy.tls), ("admin.tls", admin.tls)):
        if (tls.cert_file is None) != (tls.key_file is None):
            missing = "cert_file" if tls.cert_file is None else "key_file"
            yield (
                {f"{name}.cert_file", f"{name}.key_file"},
                f"{name}.{missing}: needed too: cert_file and key_file go together",
            )
    prometheus = config.observability.metrics.prometheus
    listeners = [("proxy.addr", config.proxy.addr)]
    if admin.enabled:
        listeners.append(("admin.addr", admin.addr))
    if prometheus.enabled:
        listeners.append(("observability.metrics.prometheus.addr", prometheus.addr))
    for index, (path, addr) in enumerate(listeners):
        for other, taken in listeners[:index]:
            if addr.clashes(taken):
                yield {path, other}, f"{path}: {addr} is taken by {other} ({taken})"


# ── files ───────────────────────────────────────────────────────────────────────────────────────


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, which also refuses a key that is written twice in one mapping."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as problem:  # such as a date with month 13
            raise yaml.constructor.ConstructorError(
                None, None, f"unusable value: {problem}", node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    text = f"key {key.value[:80]!r} is written twice"
                    raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, name: str) -> object:
    """What YAML text spells. Raises ConfigError with line and column."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - it is a SafeLoader
    except RecursionError:
        raise ConfigError([f"{name}: is nested too deeply"]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError([f"{name}{place}: {error.problem or error.context}"]) from None
    except yaml.YAMLError as error:
        position = getattr(error, "position", None)
        line = text.count("\n", 0, position) + 1 if isinstance(position, int) else 1
        reason = getattr(error, "reason", "not YAML")
        raise ConfigError([f"{name}, line {line}: {reason}"]) from None


def read_file(path: str) -> bytes:
    """The bytes of a file; the reader that `load` hands to `parse`."""
    return Path(path).read_bytes()


def load(path: str | Path, environ: Mapping[str, str]) -> Config:
    """The configuration in the file `path` under `environ`. Raises ConfigError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror or error}"]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}, line {line}: is not UTF-8 text"]) from None
    return parse(_parse_yaml(text, str(path)), environ, read_file=read_file)


# ── showing ─────────────────────────────────────────────────────────────────────────────────────


def render(setting: Setting, value: object) -> str:
    """A value as the start-up print and the documents spell it; secrets as `***`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join('***' if setting.kind.secret else str(item) for item in value)}]"
    return "***" if setting.kind.secret else str(value)


def describe(config: Config) -> list[str]:
    """One line for each setting with its value and origin: `proxy.addr = 0.0.0.0:3000 (file)`."""
    lines = []
    for path, setting in settings().items():
        value: Any = config
        for name in path.split("."):
            value = getattr(value, name)
        origin = config.origins.get(path, "default")
        lines.append(f"{path} = {render(setting, value)} ({origin})")
    return lines
