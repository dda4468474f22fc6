"""What an admin body may hold: JSON Schemas (draft 2020-12), and the strict reader that uses them.

Pure. The same dicts validate bodies and make the OpenAPI document, so the two cannot differ. The
validator's own messages quote the offending value, which may be a secret: reasons are therefore
built here from the schema alone. A keyword that cannot be put in words by itself carries its
reason in `x-reason`.

Fields of the wider AISIX vocabulary that this version does not build are refused by name, never
silently ignored.
"""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from aisix.admin.refusals import Refusal, invalid, malformed
from aisix.core.endpoints import FAMILIES
from aisix.core.resources import REQUEST_LIMITS, TOKEN_LIMITS
from aisix.core.shaping import DEFAULT_STRIP_HEADERS, MAX_DEFAULT_HEADERS

PROVIDER_KEYS = "provider_keys"
MODELS = "models"
APIKEYS = "apikeys"
ROTATION = "rotation"
KINDS = (PROVIDER_KEYS, MODELS, APIKEYS)

MASK = "***"
"""Stands for a secret on every read; on a PUT it means "keep the stored one"."""

_VERBATIM = "default_body_fields"
"""What is in it goes upstream as it was written: a null is a null there."""

MAX_GRACE_S = 30 * 86400
_MAX_INTEGER = 2**53 - 1
_MAX_SHOWN = 64
_END = r"(?![\s\S])"  # "$" would let a final line break pass in Python

Schema = dict[str, Any]

NOT_BUILT: Mapping[str, frozenset[str]] = {
    PROVIDER_KEYS: frozenset({"telemetry_tags", "response"}),
    MODELS: frozenset(
        {"routing", "ensemble", "semantic", "retries", "allowed_cidrs", "cost", "embedding"}
        | {"background_model_check", "cooldown"}
    ),
    APIKEYS: frozenset({"allowed_tools", "allowed_agents", "team_id", "user_id", "user_name"}),
    ROTATION: frozenset(),
}
"""Fields that exist in AISIX and not (yet) here."""


def _text(description: str, *, max_length: int = 256, **extra: Any) -> Schema:
    return {
        "type": "string",
        "minLength": 1,
        "maxLength": max_length,
        "description": description,
        **extra,
    }


def _pattern(pattern: str, reason: str) -> Schema:
    return {"pattern": f"^{pattern}{_END}", "x-reason": reason}


_PRINTABLE = _pattern(
    r"[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*", "must not contain control characters"
)
_TRIMMED = _pattern(r"(?!\s)[\s\S]*(?<!\s)", "must not begin or end with white space")
_NO_SLASH = _pattern(r"[^/]*", 'must not contain "/"')
_ONE_STAR = _pattern(r"[^*]*\*?[^*]*", 'may contain at most one "*"')
_VISIBLE = _pattern(
    r"[!-~]*",
    "must be visible ASCII characters only: no space, line break or other control character "
    "(was a line break pasted along?)",
)


def _nullable(schema: Schema) -> Schema:
    """The schema that also takes null, which means "absent"."""
    return {**schema, "type": [schema["type"], "null"]}


def _count(description: str, *, maximum: int = _MAX_INTEGER) -> Schema:
    return {"type": "integer", "minimum": 0, "maximum": maximum, "description": description}


def _object(properties: Schema, required: Iterable[str] = (), **extra: Any) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
        **extra,
    }


def _rate_limit(*, nullable: bool) -> Schema:
    words = {"rps": "second", "rpm": "minute", "rph": "hour", "rpd": "day"}
    words |= {"tpm": "minute", "tpd": "day"}
    limits = {name: _count(f"Requests per {words[name]}; 0 denies.") for name in REQUEST_LIMITS}
    limits |= {name: _count(f"Tokens per {words[name]}; 0 denies.") for name in TOKEN_LIMITS}
    limits["concurrency"] = _count("Requests in flight at once; 0 denies.")
    if nullable:
        limits = {name: _nullable(limit) for name, limit in limits.items()}
    schema = _object(limits, description="Token buckets; all that are set must pass.")
    return _nullable(schema) if nullable else schema


def _map_of(values: Schema, description: str, **extra: Any) -> Schema:
    return {
        "type": "object",
        "additionalProperties": values,
        "description": description,
        **extra,
    }


def _list_of_names(description: str, **extra: Any) -> Schema:
    name = {"type": "string", "maxLength": 128, "allOf": [_PRINTABLE]}
    return {
        "type": "array",
        "items": name,
        "maxItems": 64,
        "description": description,
        **extra,
    }


def _temperature(description: str) -> Schema:
    return _nullable({"type": "number", "minimum": 0, "maximum": 100, "description": description})


_PARAM_RENAMES = _map_of(
    _text("The field's name upstream.", allOf=[_PRINTABLE]),
    "Body fields to rename, from: to. A renamed field replaces one that has the new name already.",
    maxProperties=64,
)

_REQUEST = _object(
    {
        "param_renames": _nullable(_PARAM_RENAMES),
        "param_constraints": _nullable(
            _object(
                {
                    "temperature_min": _temperature("A lower temperature is raised to this."),
                    "temperature_max": _temperature("A higher temperature is lowered to this."),
                },
                description="Bounds that a body's values are brought into.",
            )
        ),
        _VERBATIM: _nullable(
            {
                "type": "object",
                "maxProperties": 64,
                "description": "Body fields that are added when a request does not have them.",
            }
        ),
        "default_headers": _nullable(
            _map_of(
                {"type": "string", "minLength": 1, "maxLength": 4096},
                'Headers sent with every call. Their values count as secrets: reads show "***".',
                maxProperties=MAX_DEFAULT_HEADERS,
            )
        ),
        "forward_client_headers": _nullable(
            _list_of_names(
                'Callers\' headers to pass on, each with at most one "*"; never credentials, '
                "cookies, or what belongs to the gateway or the connection."
            )
        ),
    },
    description="Changes to requests: renames, then bounds, then defaults; then headers.",
)

_TLS = _object(
    {
        "ca_cert": _nullable(
            _text(
                "Certificates (PEM) of the authorities that may vouch for this upstream, instead "
                "of the system's and of upstream.tls.ca_file.",
                max_length=262144,
            )
        ),
        "verify": {
            "type": ["boolean", "null"],
            "description": "Whether the certificate is checked; as upstream.tls.verify says "
            "(true) when left out. false only on a test bench.",
        },
    },
    description="TLS towards this upstream only.",
)


def _provider_key(adapters: Sequence[str]) -> Schema:
    secret = _text(
        "The upstream's key, or for azure-openai an Entra ID credential as JSON text: tenant_id, "
        "client_id and client_secret or client_certificate (PEM text), optionally authority_host; "
        '{"managed_identity": true} with at most one of client_id, object_id, resource_id; '
        '{"workload_identity": true} with what the environment does not say; in all of them '
        'optionally scope. Reads show "***".',
        max_length=65536,
        writeOnly=True,
    )
    return {
        "display_name": _text("Unique name.", allOf=[_PRINTABLE, _TRIMMED]),
        "provider": {
            "type": "string",
            "maxLength": 64,
            "default": "",
            "description": "Label of the upstream, such as azure.",
            "allOf": [_PRINTABLE],
        },
        "adapter": {
            "enum": [*adapters, None],
            "description": 'Upstream dialect; may be left out when provider is "azure".',
        },
        "secret": secret,
        "api_key": {**secret, "description": "Another name of secret; give one of the two."},
        "api_base": _nullable(
            _text(
                "Origin of the Azure OpenAI resource, or its bare name; with openai, what comes "
                "before /chat/completions (OpenAI's own when left out). Stored in normal form.",
                max_length=2048,
                allOf=[_PRINTABLE],
            )
        ),
        "api_version": _nullable(
            _text('Azure api-version: a dated one, or "v1"; none with openai.', allOf=[_PRINTABLE])
        ),
        "request": _nullable(_REQUEST),
        "strip_headers": _list_of_names(
            "Callers' headers that are not passed on, whatever else says so.",
            default=list(DEFAULT_STRIP_HEADERS),
        ),
        "tls": _nullable(_TLS),
    }


_MODEL: Schema = {
    "display_name": _text(
        'The alias callers ask for; unique. One "*" makes it a wildcard model.',
        allOf=[_PRINTABLE, _TRIMMED, _NO_SLASH, _ONE_STAR],
    ),
    "provider": _text(
        "Label of the upstream, such as azure.",
        max_length=64,
        **_pattern(
            "[a-z0-9][a-z0-9._-]*",
            "must be lower-case letters, digits, dots, dashes and underscores, beginning with a "
            "letter or digit",
        ),
    ),
    "model_name": _text(
        "The Azure deployment name, or the model's name at another upstream. In a wildcard model a "
        '"*" stands for what the alias captured.',
        allOf=[_PRINTABLE, _ONE_STAR],
    ),
    "provider_key_id": _text("The id of a provider key."),
    "api_version": _text("Overrides the provider key's api_version.", allOf=[_PRINTABLE]),
    "timeout": _count("Milliseconds for a whole non-stream call; 0 is none."),
    "stream_timeout": _count(
        "Milliseconds between two pieces of a stream; 0 falls back to `timeout`."
    ),
    "rate_limit": _rate_limit(nullable=False),
    "param_renames": {
        **_PARAM_RENAMES,
        "description": "Body fields to rename, from: to, beside those of the provider key. The "
        "model's rename of a field wins; a field renamed to itself keeps its name.",
    },
}

_APIKEY: Schema = {
    "key_hash": {
        "type": "string",
        "description": "SHA-256 of the plaintext key as 64 hex digits; unique.",
        **_pattern("[0-9a-fA-F]{64}", "must be a SHA-256 as 64 hex digits"),
    },
    "key": _text(
        "The plaintext key instead of its hash; hashed at once, never stored.",
        max_length=1024,
        writeOnly=True,
        allOf=[_VISIBLE],
    ),
    "allowed_models": {
        "type": "array",
        "items": _text('An alias; may hold one "*".', allOf=[_PRINTABLE]),
        "description": "Aliases the key may ask for; an empty list allows none.",
    },
    "allowed_resources": {
        "type": "array",
        "items": {"enum": list(FAMILIES)},
        "description": (
            "Objects at the upstream's resource that the key may reach: files, batches, … They are "
            "shared by all keys that may; without this field there are none."
        ),
    },
    "rate_limit": _rate_limit(nullable=True),
    "expires_at": _nullable(
        _text("RFC 3339 time after which the key is refused.", format="date-time")
    ),
    "disabled": {"type": "boolean", "default": False, "description": "Refuse the key for now."},
    "display_name": _nullable(_text("Shown by dashboards.", allOf=[_PRINTABLE])),
}

_ROTATION: Schema = _object(
    {
        "grace_seconds": _count(
            "How long the old key keeps working; 0 ends it at once.", maximum=MAX_GRACE_S
        )
    },
    description="Optional body of a rotation.",
)

_ONE_SECRET = {
    "oneOf": [{"required": ["secret"]}, {"required": ["api_key"]}],
    "x-reason": 'exactly one of "secret" and its other name "api_key" is required',
}
_NOT_BOTH_SECRETS = {
    "not": {"required": ["secret", "api_key"]},
    "x-reason": '"secret" and "api_key" are the same field; give one of them',
}
_ONE_KEY = {
    "oneOf": [{"required": ["key_hash"]}, {"required": ["key"]}],
    "x-reason": 'exactly one of "key_hash" and "key" is required',
}
_NOT_BOTH_KEYS = {
    "not": {"required": ["key_hash", "key"]},
    "x-reason": '"key_hash" and "key" exclude each other; give one of them',
}


class Schemas:
    """The schemas of one gateway; they depend on which adapters it has."""

    def __init__(self, adapters: Sequence[str]) -> None:
        provider_key = _provider_key(adapters)
        model_fields = ("display_name", "provider", "model_name", "provider_key_id")
        self.create: Mapping[str, Schema] = {
            PROVIDER_KEYS: _object(provider_key, ["display_name"], **_ONE_SECRET),
            MODELS: _object(_MODEL, model_fields),
            APIKEYS: _object(_APIKEY, ["allowed_models"], **_ONE_KEY),
        }
        self.replace: Mapping[str, Schema] = {
            PROVIDER_KEYS: _object(provider_key, ["display_name"], **_NOT_BOTH_SECRETS),
            MODELS: self.create[MODELS],
            APIKEYS: _object(_APIKEY, ["allowed_models"], **_NOT_BOTH_KEYS),
        }
        self.rotation = _ROTATION
        self.value: Mapping[str, Schema] = {
            PROVIDER_KEYS: _object(
                {
                    **{name: field for name, field in provider_key.items() if name != "api_key"},
                    "secret": {"const": MASK, "description": "Never shown."},
                },
                ["display_name", "provider", "adapter", "secret"],
            ),
            MODELS: self.create[MODELS],
            APIKEYS: _object(
                {name: field for name, field in _APIKEY.items() if name != "key"},
                ["key_hash", "allowed_models"],
            ),
        }
        self._validators = {
            id(schema): Draft202012Validator(schema)
            for schema in (*self.create.values(), *self.replace.values(), self.rotation)
        }

    def check(self, kind: str, document: Any, *, replacing: bool = False) -> dict[str, Any]:
        """The document of a create or replace, without nulls. Raises Refusal with the first fault.

        `kind` may also be ROTATION.
        """
        if kind == ROTATION:
            schema = self.rotation
        else:
            schema = self.replace[kind] if replacing else self.create[kind]
        if isinstance(document, dict):
            _refuse_unbuilt(document, NOT_BUILT[kind])
        errors = self._validators[id(schema)].iter_errors(document)
        first = min(errors, key=_rank, default=None)
        if first is not None:
            raise _refusal(first)
        return _tidy(document)


def parse_body(raw: bytes) -> Any:
    """JSON as we take it: UTF-8, no NaN or infinity, no field twice, no unpaired surrogate.

    Raises Refusal.
    """
    try:
        document = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        # a lone surrogate survives the parser and would fail in the store
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise malformed("the body is not UTF-8") from None
    except UnicodeEncodeError:
        raise malformed("a string holds half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise malformed(f"{error.msg} at {place}") from None
    except RecursionError:
        raise malformed("the document is nested too deeply") from None
    except ValueError:  # an integer of more digits than Python converts
        raise malformed("a number is too long") from None
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise malformed(f"field {_shown(twice)} is given twice")
    return document


def _no_constant(name: str) -> Any:
    raise malformed(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise malformed("a number is too large")
    return number


def _refuse_unbuilt(document: Mapping[str, Any], unbuilt: frozenset[str]) -> None:
    for name in document:
        if name in unbuilt:
            raise invalid(f"/{name}", "field is not supported by this version")


def _rank(error: ValidationError) -> tuple[list[str], bool, str]:
    """By place, the root first; a wrong type before what follows from it. So the answer is always
    the same one."""
    place = [str(part) for part in error.absolute_path]
    return place, error.validator != "type", str(error.validator)


def _refusal(error: ValidationError) -> Refusal:
    pointer = _pointer(error.absolute_path)
    if error.validator == "additionalProperties":
        return _unknown_fields(error, pointer)
    return invalid(pointer, _reason(error))


def _unknown_fields(error: ValidationError, pointer: str) -> Refusal:
    schema: Any = error.schema
    instance: Any = error.instance
    known = list(schema["properties"])
    unknown = [name for name in instance if name not in known]
    said = ", ".join(_with_hint(name, known) for name in unknown)
    if len(unknown) == 1:
        return invalid(pointer + _pointer([unknown[0][:_MAX_SHOWN]]), f"unknown field {said}")
    return invalid(pointer, f"unknown fields {said}")


def _with_hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name[:_MAX_SHOWN], known, n=1)
    return f'{_shown(name)} (did you mean "{near[0]}"?)' if near else _shown(name)


def _shown(name: str) -> str:
    """A field name of the caller's, cut and escaped."""
    cut = name if len(name) <= _MAX_SHOWN else name[:_MAX_SHOWN] + "…"
    return json.dumps(cut)


def _reason(error: ValidationError) -> str:
    """What the rule asks for, in words; never the value."""
    rule: Any = error.validator_value
    instance: Any = error.instance
    schema: Any = error.schema
    match error.validator:
        case "required":
            missing = next(name for name in rule if name not in instance)
            return f'"{missing}" is required'
        case "type":
            return f"must be {_type_words(rule)}"
        case "enum":
            return "must be one of " + ", ".join(f'"{v}"' for v in rule if v is not None)
        case "minLength":
            return "must not be empty"
        case "maxLength":
            return f"must have at most {rule} characters"
        case "minimum":
            return f"must be {rule} or more"
        case "maximum":
            return f"must be {rule} or less"
        case "maxItems" | "maxProperties":
            return f"must have at most {rule} entries"
        case _:  # pattern, oneOf, not: they carry their reason
            return str(schema["x-reason"])


def _type_words(types: str | Sequence[str]) -> str:
    names = [types] if isinstance(types, str) else list(types)
    return " or ".join(
        name if name == "null" else f"{'an' if name[0] in 'aio' else 'a'} {name}" for name in names
    )


def _pointer(path: Iterable[Any]) -> str:
    """A JSON pointer; names are the caller's, so control characters are escaped."""
    names = (json.dumps(str(part))[1:-1] for part in path)
    return "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in names)


def _tidy(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without nulls (they mean "absent"), and 1.0 as 1: a schema integer may be spelt so. What
    goes upstream as it is written stays so."""
    tidy: dict[str, Any] = {}
    for name, value in document.items():
        if value is None:
            continue
        if isinstance(value, dict):
            tidy[name] = value if name == _VERBATIM else _tidy(value)
        elif isinstance(value, float) and value.is_integer():
            tidy[name] = int(value)
        else:
            tidy[name] = value
    return tidy
