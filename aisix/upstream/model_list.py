"""What a probe of an OpenAI-compatible upstream found out, in an operator's words. Pure.

The probe asks for the list of models: it costs nothing, needs the address and the key, and names
what can be asked for. The list may be long and then is cut off: what is not in the part that was
read may still be there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import ujson

from aisix.core.ports import Finding
from aisix.core.resources import Deployment
from aisix.upstream.findings import Answer, Words, read_answer
from aisix.upstream.scrub import one_line

_SHOWN_NAMES = 10
_MAX_NAME_CHARS = 64
_NAME = re.compile(rb'"id"\s*+:\s*+("[^"\\]*+(?:\\.[^"\\]*+)*+")')
_CHECK_BASE = (
    "check api_base: for OpenAI, vLLM and most others it ends in /v1; a proxy on the way may "
    "answer instead"
)


def judge_answer(
    status: int, headers: Mapping[str, str], body: bytes, *, deployment: Deployment
) -> Finding:
    """What the answer to the probe of `deployment` means; without a name it is the upstream's."""
    answer = read_answer(status, headers, body, deployment=deployment)
    return answer.finding(_judge(answer, body))


def _judge(answer: Answer, body: bytes) -> Words:
    status = answer.status
    if status < 300:
        return _listed(answer, body)
    if 300 <= status < 400:
        return (
            "address",
            f"the upstream answered {status}: it sends callers elsewhere, and no redirect is "
            "followed",
            "write the address that it leads to as api_base",
        )
    if status in _BY_STATUS:
        return _BY_STATUS[status](answer)
    if status >= 500:
        return (
            "upstream",
            f"the upstream answered {status}: it fails, whatever is asked of it",
            "try again in a while, or look at the server's own log",
        )
    if not answer.refusal.readable:
        return ("address", "the answer is not one of an OpenAI-compatible server", _CHECK_BASE)
    return (
        "upstream",
        f"the upstream answered {status}, which tells nothing about the settings",
        "read upstream_message",
    )


def _listed(answer: Answer, body: bytes) -> Words:
    names, whole = _names(body)
    if names is None:
        return ("address", "the answer is no list of models", _CHECK_BASE)
    wanted = answer.deployment.name
    if not wanted:
        return ("", "address and key are right", "")
    if wanted in names:
        return ("", "address, key and model are right", "")
    if not whole:
        return ("", "address and key are right; the list of models is too long to look for it", "")
    shown = [one_line(name, _MAX_NAME_CHARS) for name in names[:_SHOWN_NAMES]]
    more = ", …" if len(names) > _SHOWN_NAMES else ""
    return (
        "deployment",
        f'the upstream does not list a model "{wanted}"',
        f"write one of its models as model_name ({', '.join(shown) or 'it lists none'}{more}); "
        "some upstreams have models that they do not list, as Azure has: a request tells",
    )


def _names(body: bytes) -> tuple[list[str] | None, bool]:
    """The models, None when there is no list; and whether those are all."""
    try:
        document = ujson.loads(body)
    except (ValueError, RecursionError, OverflowError):
        return [_text(found) for found in _NAME.findall(body)] or None, False
    entries = document.get("data") if isinstance(document, dict) else document
    if not isinstance(entries, list):
        return None, True
    return [_id(entry) for entry in entries], True


def _text(quoted: bytes) -> str:
    try:
        return str(ujson.loads(quoted))
    except ValueError:
        return ""


def _id(entry: Any) -> str:
    return str(entry.get("id", "")) if isinstance(entry, dict) else ""


def _unauthorized(answer: Answer) -> Words:
    return (
        "authentication",
        "the upstream refuses the key",
        "write a key that is valid at api_base, alone: no header name, no Bearer",
    )


def _forbidden(answer: Answer) -> Words:
    if not answer.refusal.readable:
        return ("access", "something on the way refuses the call", _CHECK_BASE)
    return (
        "access",
        "the upstream knows the key and refuses access",
        "read upstream_message: the key's project, permissions or region may not allow it",
    )


def _not_found(answer: Answer) -> Words:
    return ("address", "the upstream has no list of models below api_base", _CHECK_BASE)


def _throttled(answer: Answer) -> Words:
    return (
        "limits",
        "the upstream lets the call in and throttles it: a rate limit is reached, or the account's "
        "quota is used up",
        "wait, or look at the account's limits and credit; address and key are right",
    )


_BY_STATUS: Mapping[int, Callable[[Answer], Words]] = {
    401: _unauthorized,
    403: _forbidden,
    404: _not_found,
    405: _not_found,
    429: _throttled,
}
