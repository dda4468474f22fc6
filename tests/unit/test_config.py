"""Settings: what is read, what is refused, in which words, and that secrets never show."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import pytest
import trustme

from aisix.config import (
    SHIPPED_ADMIN_KEY,
    UNSUPPORTED,
    Address,
    Config,
    ConfigError,
    ForwardProxy,
    describe,
    load,
    parse,
    read_file,
    settings,
    variable,
)

SECRET = "s3cret-value-nobody-may-see"
ADMIN = {"admin": {"admin_keys": ["a-key-of-mine"]}}


def nested(path: str, value: object) -> dict[str, Any]:
    """`value` at `path` in a document that is otherwise good."""
    document: dict[str, Any] = {"admin": {"admin_keys": ["a-key-of-mine"]}}
    *parents, name = path.split(".")
    node = document
    for parent in parents:
        node = node.setdefault(parent, {})
    node[name] = value
    return document


def value_at(config: Config, path: str) -> object:
    value: object = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def files(content: Mapping[str, bytes]):
    """A reader of files that exist in memory only."""

    def read(path: str) -> bytes:
        if path not in content:
            raise FileNotFoundError(2, "No such file or directory", path)
        return content[path]

    return read


def problems_of(document: object, environ: Mapping[str, str] | None = None, **content: bytes):
    with pytest.raises(ConfigError) as caught:
        parse(document, environ or {}, read_file=files(content))
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


# ── values and their origin ─────────────────────────────────────────────────────────────────────


def test_without_anything_but_a_key_every_default_holds():
    config = parse(ADMIN, {})
    assert config.proxy == Config().proxy
    assert config.upstream == Config().upstream
    assert config.origins["admin.admin_keys"] == "file"
    assert config.origins["proxy.addr"] == "default"
    assert config.ignored_sections == ()


def test_environment_beats_file_beats_default():
    document = nested("proxy.addr", "127.0.0.1:1")
    document["upstream"] = {"http2": True}
    config = parse(document, {"AISIX_PROXY__ADDR": "127.0.0.1:2"})
    assert (str(config.proxy.addr), config.origins["proxy.addr"]) == ("127.0.0.1:2", "environment")
    assert (config.upstream.http2, config.origins["upstream.http2"]) == (True, "file")
    assert config.origins["upstream.timeout_ms"] == "default"


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("proxy.addr", "[::1]:0", Address("::1", 0)),
        ("proxy.request_body_limit_bytes", "0", 0),
        ("proxy.request_id.accept_headers", "X-One, x-two,", ("x-one", "x-two")),
        ("proxy.request_id.accept_headers", "", ()),
        ("upstream.http2", "TRUE", True),
        ("upstream.tls.verify", "off", False),
        ("upstream.tls.ca_file", "", None),
        ("observability.service_name", "a,b", "a,b"),
        ("observability.log_level", "debug", "debug"),
        (
            "upstream.connect_to",
            "h:443:127.0.0.1:8443,::[::1]:",
            ("h:443:127.0.0.1:8443", "::[::1]:"),
        ),
        ("shutdown.max_drain_secs", "30", 30),
    ],
)
def test_a_variable_sets_its_setting(path, text, value):
    assert value_at(parse(ADMIN, {variable(path): text}), path) == value


def test_every_setting_has_its_own_variable():
    names = [variable(path) for path in settings()]
    assert len(set(names)) == len(names)
    assert variable("observability.metrics.prometheus.addr") == (
        "AISIX_OBSERVABILITY__METRICS__PROMETHEUS__ADDR"
    )


def test_empty_sections_are_as_absent_ones():
    document = {"admin": {"admin_keys": ["k"], "tls": None}, "proxy": None, "upstream": {}}
    assert parse(document, {}) == parse({"admin": {"admin_keys": ["k"]}}, {})


def test_sections_of_the_original_that_we_lack_are_accepted_and_named():
    document = {**ADMIN, "etcd": {"endpoints": ["x"]}, "managed": None}
    config = parse(document, {"AISIX_CACHE__BACKEND": "redis", "AISIX_ETCD__PREFIX": "/x"})
    assert config.ignored_sections == ("cache", "etcd", "managed")


def test_other_variables_of_the_prefix_are_left_alone():
    environ = {"AISIX_ADMIN_KEY": "x", "AISIX_PORT_3000_TCP": "tcp://1", "OTHER__NAME": "x"}
    assert parse(ADMIN, environ) == parse(ADMIN, {})


# ── what is refused ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("proxy.adr", "; did you mean proxy.addr?"),
        ("log_level", "; did you mean observability.log_level?"),
        ("upstreem", "; did you mean upstream?"),
        ("upstream.tls.verfy", "; did you mean upstream.tls.verify?"),
        ("zzzzzz", ""),
    ],
)
def test_an_unknown_key_is_refused_with_the_likeliest_one(path, hint):
    assert problems_of(nested(path, 1)) == [f"{path}: unknown key{hint}"]


def test_a_dotted_key_does_not_pass_for_a_nested_one():
    document: dict[Any, object] = {**ADMIN, "proxy.addr": "127.0.0.1:1", 7: 1}
    assert problems_of(document) == [
        "proxy.addr: unknown key; nest sections instead of writing dots",
        "7: unknown key; nest sections instead of writing dots",
    ]


@pytest.mark.parametrize("path", sorted(UNSUPPORTED))
def test_what_is_not_built_is_refused_from_file_and_environment(path):
    assert problems_of(nested(path, {"any": 1})) == [f"{path}: is not supported by this version"]
    if "." in path:
        name = variable(path) + "__DEEPER"
        assert problems_of(ADMIN, {name: "x"}) == [f"{name}: is not supported by this version"]


def test_redis_is_refused_as_not_built():
    assert problems_of(nested("ratelimit.backend", "redis")) == [
        "ratelimit.backend: redis is not supported by this version"
    ]
    assert "must be memory" in problems_of(nested("ratelimit.backend", "etcd"))[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("AISIX_PROXY__ADR", "unknown variable; did you mean AISIX_PROXY__ADDR?"),
        ("AISIX__PROXY__ADDR", "unknown variable; did you mean AISIX_PROXY__ADDR?"),
        ("AISIX_proxy__addr", "unknown variable; did you mean AISIX_PROXY__ADDR?"),
        ("AISIX_QQ__ZZ", "unknown variable"),
        (
            "AISIX_PROXY__TLS",
            "is a section; set what is in it, such as AISIX_PROXY__TLS__CERT_FILE",
        ),
    ],
)
def test_an_unknown_variable_stops_the_start(name, text):
    assert problems_of(ADMIN, {name: "127.0.0.1:1"}) == [f"{name}: {text}"]


@pytest.mark.parametrize("document", ["text", ["list"], 5])
def test_a_document_that_is_no_mapping_is_refused(document):
    found = problems_of(document)
    kind = type(document).__name__
    assert found[0] == f"configuration: must be a mapping of settings, not {kind}"
    assert problems_of({**ADMIN, "proxy": document}) == [
        f"proxy: must be a mapping of settings, not {kind}"
    ]


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("upstream.timeout_ms", True, "must be a whole number, not True"),
        ("upstream.timeout_ms", float("nan"), "must be a whole number, not nan"),
        ("upstream.timeout_ms", 1.0, "must be a whole number, not 1.0"),
        ("upstream.timeout_ms", "5000", "must be a whole number, not '5000'"),
        ("upstream.timeout_ms", None, "must be a whole number, not null"),
        ("upstream.stream_timeout_ms", -1, "must be ≥ 0, not -1"),
        ("upstream.timeout_ms", 2**31, "must be ≤ 2147483647, not 2147483648"),
        ("upstream.http2", 1, "must be true or false, not 1"),
        ("upstream.http2", "true", "must be true or false, not 'true'"),
        (
            "observability.log_level",
            "warn",
            "must be debug or info or warning or error, not 'warn'",
        ),
        (
            "observability.log_level",
            ["info"],
            "must be debug or info or warning or error, not ['info']",
        ),
        ("observability.service_name", "", "must not be empty or hold control characters"),
        (
            "observability.service_name",
            "a b",
            "must be one word of at most 128 characters, not 'a b'",
        ),
        ("observability.service_name", 5, "must be a string, not 5"),
        (
            "observability.metrics.prometheus.path",
            "metrics",
            "must be a path such as /metrics, not 'metrics'",
        ),
        ("store.path", "a\0b", "must not be empty or hold control characters"),
        ("proxy.request_id.accept_headers", "x-id", "must be a list, not 'x-id'"),
    ],
)
def test_a_value_of_the_wrong_kind_or_size_is_refused(path, value, text):
    assert problems_of(nested(path, value)) == [f"{path}: {text}"]


def test_a_number_too_long_to_print_is_refused_in_words():
    assert problems_of(nested("upstream.timeout_ms", 10**5000)) == [
        "upstream.timeout_ms: must be ≤ 2147483647, not a number that is far too large"
    ]


def test_a_long_value_is_cut_short_in_its_message():
    [problem] = problems_of(nested("observability.log_level", "x" * 5000))
    assert len(problem) < 200


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("AISIX_UPSTREAM__HTTP2", "maybe", "must be true or false, not 'maybe'"),
        ("AISIX_UPSTREAM__TIMEOUT_MS", "1_000", "must be a whole number, not '1_000'"),
        ("AISIX_UPSTREAM__TIMEOUT_MS", "", "must be a whole number, not ''"),
        ("AISIX_UPSTREAM__TIMEOUT_MS", "-1", "must be ≥ 0, not -1"),
        ("AISIX_STORE__PATH", "", "must not be empty or hold control characters"),
    ],
)
def test_a_bad_variable_is_named(name, text, problem):
    assert problems_of(ADMIN, {name: text}) == [f"{name}: {problem}"]


def test_all_problems_come_at_once_with_their_places():
    document = {
        "proxy": {"addr": "nowhere", "request_id": {"accept_headers": ["ok", "a b", "Cookie"]}},
        "upstream": {"connect_to": ["fine:443:127.0.0.1:1", 5], "typo": 1},
        "admin": {"admin_keys": []},
    }
    found = problems_of(document, {"AISIX_UPSTREAM__HTTP2": "maybe"})
    places = [problem.split(": ")[0] for problem in found]
    assert places == [
        "upstream.typo",
        "proxy.addr",
        "proxy.request_id.accept_headers[1]",
        "proxy.request_id.accept_headers[2]",
        "AISIX_UPSTREAM__HTTP2",
        "upstream.connect_to[1]",
        "admin.admin_keys",
    ]


def test_items_of_a_list_in_a_variable_are_named_by_index():
    [problem] = problems_of(
        ADMIN, {"AISIX_PROXY__REQUEST_ID__ACCEPT_HEADERS": "x-ok,authorization"}
    )
    assert problem == (
        "AISIX_PROXY__REQUEST_ID__ACCEPT_HEADERS[1]: authorization is reserved:"
        " its value must not become a request id"
    )


@pytest.mark.parametrize(
    "text",
    ["nope", "nope:443", "a:1:b", ":::", "h:443::", "h:70000:a:1", "h:1:a:99999", "::1:443:a:1",
     "a b:1:c:2", "h:x:a:1", ""],
)  # fmt: skip
def test_a_connect_to_that_libcurl_would_not_understand_is_refused(text):
    [problem] = problems_of(nested("upstream.connect_to", [text]))
    assert problem.startswith("upstream.connect_to[0]: must ")


# ── addresses ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:3000", "127.0.0.1", 3000),
        ("[::1]:3000", "::1", 3000),
        ("[0:0:0:0:0:0:0:0]:1", "::", 1),
        ("Gateway.internal:65535", "gateway.internal", 65535),
        ("localhost:0", "localhost", 0),
    ],
)
def test_an_address_is_host_and_port(text, host, port):
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", "3000", ":3000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "::1:3000",
     "[::1]", "[127.0.0.1]:1", "256.0.0.1:1", "1:1", "http://h:1", "a b:1", "-a:1", "h:1/x",
     "h:\u0661", "h:1\n", "[::1:1", "h:" + "1" * 50],
)  # fmt: skip
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError):
        Address.parse(text)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("gateway.internal:1", False),
    ],
)
def test_loopback_is_recognised(text, loopback):
    assert Address.parse(text).is_loopback is loopback


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "localhost:1", True),
        ("0.0.0.0:1", "127.0.0.1:1", True),
        ("[::]:1", "[::1]:1", True),
        ("0.0.0.0:1", "[::1]:1", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
    ],
)
def test_two_addresses_clash_when_they_cannot_both_be_bound(one, other, clash):
    assert Address.parse(one).clashes(Address.parse(other)) is clash
    assert Address.parse(other).clashes(Address.parse(one)) is clash


def test_two_listeners_on_one_address_are_refused():
    document = nested("proxy.addr", "127.0.0.1:3001")
    assert problems_of(document) == [
        "admin.addr: 127.0.0.1:3001 is taken by proxy.addr (127.0.0.1:3001)"
    ]
    off = {"admin": {"enabled": False}, "proxy": {"addr": "127.0.0.1:3001"}}
    assert parse(off, {}).admin.enabled is False


def test_the_metrics_listener_counts_only_when_it_is_on():
    prometheus: dict[str, object] = {"addr": "127.0.0.1:3000"}
    document = {**ADMIN, "observability": {"metrics": {"prometheus": prometheus}}}
    assert problems_of(document) == [
        "observability.metrics.prometheus.addr: 127.0.0.1:3000 is taken by proxy.addr"
        " (127.0.0.1:3000)"
    ]
    prometheus["enabled"] = False
    assert parse(document, {}).observability.metrics.prometheus.enabled is False


# ── the admin keys ──────────────────────────────────────────────────────────────────────────────


def test_an_enabled_admin_api_needs_a_key():
    text = "admin.admin_keys: at least one key is needed while admin.enabled is true"
    assert problems_of({}) == [text]
    assert problems_of(None) == [text]
    assert parse({"admin": {"enabled": False}}, {}).admin.admin_keys == ()


def test_admin_keys_are_plain_or_references():
    document = {"admin": {"admin_keys": ["plain", "env:KEY", "file:/run/key"]}}
    config = parse(document, {"KEY": "of-env"}, read_file=files({"/run/key": b" of-file\n"}))
    assert config.admin.admin_keys == ("plain", "of-env", "of-file")


def test_admin_keys_come_from_a_variable_too():
    environ = {"AISIX_ADMIN__ADMIN_KEYS": "one,env:KEY", "KEY": "with,comma"}
    config = parse({}, environ)
    assert config.admin.admin_keys == ("one", "with,comma")


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("env:ABSENT", "environment variable ABSENT is not set"),
        ("env:EMPTY", "environment variable EMPTY is not set"),
        ("env:no good", "env: must be followed by the name of an environment variable"),
        ("file:/absent", "cannot read /absent: No such file or directory"),
        ("file:blank", "file blank is empty"),
        (5, "must be a string: the key itself, env:NAME or file:/path"),
        ("", "must be visible ASCII characters without spaces: it travels in a header"),
        ("two words", "must be visible ASCII characters without spaces: it travels in a header"),
        ("env:NEWLINE", "must be visible ASCII characters without spaces: it travels in a header"),
    ],
)
def test_an_admin_key_that_cannot_be_had_is_refused(reference, text):
    environ = {"EMPTY": "", "NEWLINE": "a\nb"}
    found = problems_of({"admin": {"admin_keys": [reference]}}, environ, blank=b" \n")
    assert found == [f"admin.admin_keys[0]: {text}"]


@pytest.mark.parametrize("addr", ["0.0.0.0:3001", "[::]:3001", "10.0.0.1:3001", "example.com:3001"])
def test_the_shipped_key_is_refused_where_others_can_reach_it(addr):
    document = {"admin": {"addr": addr, "admin_keys": ["mine", "env:KEY"]}}
    [problem] = problems_of(document, {"KEY": SHIPPED_ADMIN_KEY})
    assert problem.startswith(f"admin.addr: {addr} can be reached from other machines")
    assert "bind 127.0.0.1:3001" in problem
    assert parse(document, {"KEY": "another"}).admin.addr == Address.parse(addr)


@pytest.mark.parametrize("addr", ["127.0.0.1:3001", "[::1]:3001", "localhost:3001"])
def test_the_shipped_key_serves_on_loopback(addr):
    assert parse({"admin": {"addr": addr, "admin_keys": [SHIPPED_ADMIN_KEY]}}, {})


# ── the encryption key ──────────────────────────────────────────────────────────────────────────

RAW = bytes(range(32))


@pytest.mark.parametrize("text", [RAW.hex(), RAW.hex().upper(), base64.b64encode(RAW).decode()])
def test_the_encryption_key_is_32_bytes_by_reference(text):
    by_env = parse(nested("store.encryption_key", "env:SEAL"), {"SEAL": text})
    assert by_env.store.encryption_key == RAW
    reader = files({"/seal": text.encode() + b"\n"})
    environ = {"AISIX_STORE__ENCRYPTION_KEY": "file:/seal"}
    assert parse(ADMIN, environ, read_file=reader).store.encryption_key == RAW


@pytest.mark.parametrize("text", [SECRET, RAW.hex()[:-2], base64.b64encode(RAW[:31]).decode(), "ü"])
def test_an_encryption_key_of_the_wrong_form_is_refused_without_showing_it(text):
    [problem] = problems_of(nested("store.encryption_key", "env:SEAL"), {"SEAL": text})
    assert problem.startswith("store.encryption_key: must lead to 32 bytes")
    assert text not in problem


@pytest.mark.parametrize("value", [SECRET, RAW.hex(), 5, [SECRET]])
def test_an_encryption_key_written_out_is_refused_without_showing_it(value):
    [problem] = problems_of(nested("store.encryption_key", value))
    assert problem == (
        "store.encryption_key: must be a reference, env:NAME or file:/path, never the key itself"
    )


# ── files that must exist ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("listener", ["proxy", "admin"])
def test_a_certificate_needs_its_key_and_a_key_its_certificate(listener):
    content = {"c.pem": b"-", "k.pem": b"-"}
    both = nested(f"{listener}.tls.cert_file", "c.pem")
    with pytest.raises(ConfigError) as caught:
        parse(both, {}, read_file=files(content))
    text = "needed too: cert_file and key_file go together"
    assert caught.value.problems == [f"{listener}.tls.key_file: {text}"]
    with pytest.raises(ConfigError) as caught:
        parse(nested(f"{listener}.tls.key_file", "k.pem"), {}, read_file=files(content))
    assert caught.value.problems == [f"{listener}.tls.cert_file: {text}"]
    both[listener]["tls"]["key_file"] = "k.pem"
    config = parse(both, {}, read_file=files(content))
    assert value_at(config, f"{listener}.tls").enabled  # type: ignore[attr-defined]
    assert not Config().proxy.tls.enabled


@pytest.mark.parametrize("path", ["proxy.tls.cert_file", "upstream.tls.ca_file"])
def test_a_named_file_that_is_not_there_is_refused_once(path):
    assert problems_of(nested(path, "/gone.pem")) == [
        f"{path}: cannot read /gone.pem: No such file or directory"
    ]


@pytest.mark.parametrize(
    "content", [b"", b"host-name\n", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nMII\n"]
)
def test_a_ca_file_without_certificates_is_refused(content):
    with pytest.raises(ConfigError) as caught:
        parse(nested("upstream.tls.ca_file", "ca.pem"), {}, read_file=lambda path: content)
    assert caught.value.problems == ["upstream.tls.ca_file: ca.pem holds no PEM certificates"]


def test_a_ca_file_may_hold_several_certificates_and_comments():
    pems = b"".join(trustme.CA().cert_pem.bytes() for _ in range(2))
    content = "# Größte Zertifizierungsstelle\n".encode() + pems
    config = parse(nested("upstream.tls.ca_file", "ca.pem"), {}, read_file=lambda path: content)
    assert config.upstream.tls.ca_file == "ca.pem"


def test_without_a_reader_no_file_exists():
    with pytest.raises(ConfigError, match="cannot read x: no file reader was given"):
        parse(nested("upstream.tls.ca_file", "x"), {})


# ── secrets stay secret ─────────────────────────────────────────────────────────────────────────


def secretive() -> Config:
    environ = {"SEAL": RAW.hex(), "AISIX_UPSTREAM__HTTP2": "true"}
    document = nested("store.encryption_key", "env:SEAL")
    document["admin"]["admin_keys"] = [SECRET, SECRET + "2"]
    return parse(document, environ)


def test_the_start_up_print_names_every_value_and_its_origin_but_no_secret():
    lines = describe(secretive())
    assert len(lines) == len(settings())
    assert "proxy.addr = 127.0.0.1:3000 (default)" in lines
    assert "upstream.http2 = true (environment)" in lines
    assert "upstream.connect_to = [] (default)" in lines
    assert "upstream.tls.ca_file = null (default)" in lines
    assert "admin.admin_keys = [***, ***] (file)" in lines
    assert "store.encryption_key = *** (file)" in lines
    assert SECRET not in "\n".join(lines)
    assert "store.encryption_key = null (default)" in describe(Config())


def test_repr_hides_secrets():
    text = repr(secretive())
    assert SECRET not in text
    assert repr(RAW) not in text


@pytest.mark.parametrize(
    "document",
    [
        {"admin": {"admin_keys": SECRET}},
        {"admin": {"admin_keys": {"k": SECRET}}},
        {"admin": {"admin_keys": [SECRET + " with space", [SECRET]]}},
        {"admin": SECRET},
        {"store": {"encryption_key": {"k": SECRET}}},
        {"store": SECRET},
        SECRET,
    ],
)
def test_no_problem_shows_a_secret_in_the_wrong_place(document):
    assert SECRET not in "\n".join(problems_of(document))


# ── the file ────────────────────────────────────────────────────────────────────────────────────


def load_text(tmp_path, text: str | bytes, environ: Mapping[str, str] | None = None) -> Config:
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path, environ or {})


def load_problem(tmp_path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    [problem] = caught.value.problems
    return problem.replace(str(tmp_path / "config.yaml"), "FILE")


def test_a_file_is_read_and_its_references_followed(tmp_path):
    (tmp_path / "key").write_text("from-a-file\n")
    text = f"admin:\n  admin_keys: ['file:{tmp_path}/key']\nproxy: {{addr: 127.0.0.1:5}}\n"
    config = load_text(tmp_path, text, {"AISIX_UPSTREAM__HTTP2": "yes"})
    assert config.admin.admin_keys == ("from-a-file",)
    assert config.proxy.addr.port == 5
    assert config.upstream.http2


def test_json_and_a_byte_order_mark_are_read(tmp_path):
    text = '\ufeff{"admin": {"admin_keys": ["k"]}, "upstream": {"http2": true}}'
    assert load_text(tmp_path, text).upstream.http2


def test_an_empty_file_is_an_empty_configuration(tmp_path):
    assert load_text(tmp_path, "", {"AISIX_ADMIN__ADMIN_KEYS": "k"}).admin.admin_keys == ("k",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "proxy:\n  addr: 'a:1'\n  addr: 'b:1'\n",
            "FILE, line 3, column 3: key 'addr' is written twice",
        ),
        ("proxy: {}\nproxy: {}\n", "FILE, line 2, column 1: key 'proxy' is written twice"),
        (
            "proxy:\n\taddr: x\n",
            "FILE, line 2, column 1: found character '\\t' that cannot start any token",
        ),
        ("proxy: [1\n", "FILE, line 2, column 1: expected ',' or ']', but got '<stream end>'"),
        (
            "a: !!python/object/apply:os.system ['x']",
            "could not determine a constructor for the tag",
        ),
        ("a: *nothing\n", "FILE, line 1, column 4: found undefined alias 'nothing'"),
        ("a: 1\n---\nb: 2\n", "FILE, line 2, column 1: but found another document"),
        ("a: 1\nb: 2024-13-45\n", "FILE, line 2, column 4: unusable value: month must be in 1..12"),
        ("? [1]\n: 2\n", "FILE, line 1, column 3: found unhashable key"),
        ("a: 1\nb: \x07\n", "FILE, line 2: special characters are not allowed"),
        (b"a: 1\nb: \xff\n", "FILE, line 2: is not UTF-8 text"),
    ],
)
def test_a_file_that_is_not_good_yaml_is_refused_with_its_line(tmp_path, text, problem):
    assert problem in load_problem(tmp_path, text)


def test_a_file_nested_without_end_is_refused(tmp_path):
    assert load_problem(tmp_path, "[" * 20_000) == "FILE: is nested too deeply"


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "gone.yaml", {})
    assert caught.value.problems == [
        f"{tmp_path}/gone.yaml: cannot be read: No such file or directory"
    ]
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, {})


def test_a_merge_of_anchors_is_no_duplicate(tmp_path):
    text = "admin: {admin_keys: [k]}\nproxy: &p {addr: 'h:1'}\nupstream: {<<: {}, http2: true}\n"
    assert load_text(tmp_path, text).upstream.http2


def test_the_reader_reads_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff")
    assert read_file(str(tmp_path / "x")) == b"\xff"


# ── the proxy on the way to upstreams ───────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("http://proxy.corp:3128", ForwardProxy("http://proxy.corp:3128")),
        ("HTTPS://Proxy.Corp:3129/", ForwardProxy("https://proxy.corp:3129")),
        ("http://[::1]:8080", ForwardProxy("http://[::1]:8080")),
        ("http://u:p%40ss%2F@10.0.0.1:1", ForwardProxy("http://10.0.0.1:1", "u", "p@ss/")),
        ("http://u@10.0.0.1:1", ForwardProxy("http://10.0.0.1:1", "u", "")),
    ],
)
def test_a_proxy_is_read_with_its_login_apart(text, proxy):
    assert parse(nested("upstream.proxy", text), {}).upstream.proxy == proxy
    by_name = parse(nested("upstream.proxy", "env:MY_PROXY"), {"MY_PROXY": text})
    assert by_name.upstream.proxy == proxy
    document = nested("upstream.proxy", "file:/run/proxy")
    read = files({"/run/proxy": f"{text}\n".encode()})
    assert parse(document, {}, read_file=read).upstream.proxy == proxy


@pytest.mark.parametrize(
    "text",
    [
        "proxy.corp:3128",
        "http://proxy.corp",
        "http://proxy.corp:0",
        "http://proxy.corp:99999",
        "socks5://proxy.corp:1080",
        "http://proxy.corp:3128/path",
        "http://proxy.corp:3128?x",
        "http://:3128",
        f"http://u:{SECRET}/@proxy.corp:3128",
        f"http://:{SECRET}@proxy.corp:3128",
        f"http://u%3Ax:{SECRET}@proxy.corp:3128",
        f"http://u:{SECRET}%0d%0a@proxy.corp:3128",
        "",
        5,
    ],
)
def test_what_is_no_proxy_is_refused_without_being_repeated(text):
    (problem,) = problems_of(nested("upstream.proxy", text))
    assert problem.startswith("upstream.proxy: must be http://host:port or https://host:port")
    assert SECRET not in problem
    assert "corp" not in problem


def test_a_reference_that_leads_nowhere_is_named():
    assert problems_of(nested("upstream.proxy", "env:MY_PROXY")) == [
        "upstream.proxy: environment variable MY_PROXY is not set"
    ]


def test_the_login_of_a_proxy_shows_nowhere():
    config = parse(nested("upstream.proxy", f"http://user:{SECRET}@proxy.corp:3128"), {})
    assert SECRET not in repr(config)
    assert SECRET in config.secrets
    lines = describe(config)
    assert "upstream.proxy = http://***@proxy.corp:3128 (file)" in lines
    assert SECRET not in str(lines)


@pytest.mark.parametrize(
    ("item", "kept"),
    [
        ("*", "*"),
        ("localhost", "localhost"),
        (".corp.example", ".corp.example"),
        ("10.0.0.4", "10.0.0.4"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("fd00::/8", "fd00::/8"),
        ("[::1]", "::1"),
    ],
)
def test_hosts_without_proxy_are_names_suffixes_addresses_and_ranges(item, kept):
    assert parse(nested("upstream.no_proxy", [item]), {}).upstream.no_proxy == (kept,)


@pytest.mark.parametrize("item", ["*.corp", "a,b", "http://x", "10.0.0.0/99", "a b", "x:80"])
def test_what_libcurl_would_not_understand_is_refused(item):
    (problem,) = problems_of(nested("upstream.no_proxy", [item]))
    assert problem.startswith("upstream.no_proxy[0]: must be a host name, a suffix")
