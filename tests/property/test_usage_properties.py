"""The meter survives anything, and its figures are consistent."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aisix.core.endpoints import ENDPOINTS
from aisix.usage.meter import UsageMeter

CHAT = ENDPOINTS[0]
NAMES = [
    "model",
    "usage",
    "choices",
    "delta",
    "message",
    "text",
    "content",
    "tool_calls",
    "function",
    "arguments",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "prompt_tokens_details",
    "cached_tokens",
]

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)
    ),
    max_leaves=20,
)
counts = st.integers(0, 10**6)


def make_block(prompt: int, completion: int, details: dict[str, int] | None) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": details,
    }


blocks = st.builds(make_block, counts, counts, st.none() | st.just({"cached_tokens": 1}))


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), junk, max_size=6), max_size=4))
def test_no_document_makes_the_meter_fail(documents: list[dict[str, Any]]) -> None:
    meter = UsageMeter(CHAT)
    for document in documents:
        meter.observe(document)
    usage = meter.usage(3)
    assert min(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) >= 0
    if usage.estimated:
        assert usage.prompt_tokens == 3
        assert usage.total_tokens == 3 + usage.completion_tokens


@given(st.lists(blocks, min_size=1, max_size=5), st.randoms())
def test_reported_usage_is_the_maximum_in_any_order(
    drawn: list[dict[str, Any]], random: Any
) -> None:
    def total(seen: list[dict[str, Any]]) -> Any:
        meter = UsageMeter(CHAT)
        for block in seen:
            meter.observe({"usage": block, "choices": []})
        return meter.usage(0)

    shuffled = list(drawn)
    random.shuffle(shuffled)
    usage = total(drawn)
    assert usage == total(shuffled)
    assert usage.prompt_tokens == max(block["prompt_tokens"] for block in drawn)
    assert usage.completion_tokens == max(block["completion_tokens"] for block in drawn)
    assert not usage.estimated


@given(st.text(max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_the_estimate_does_not_depend_on_how_text_was_streamed(text: str, at: list[int]) -> None:
    places = sorted({min(place, len(text)) for place in at} | {0, len(text)})
    meter = UsageMeter(CHAT)
    for start, end in itertools.pairwise(places):
        meter.observe({"choices": [{"delta": {"content": text[start:end]}}]})
    bytes_in_text = len(text.encode("utf-8", "surrogatepass"))
    assert meter.usage(0).completion_tokens == -(-bytes_in_text // 4)
