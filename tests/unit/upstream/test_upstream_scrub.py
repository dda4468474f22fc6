"""What must not leave in error texts leaves none; what helps callers stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aisix.core.resources import Deployment
from aisix.upstream.scrub import Scrubber, one_line


def make_scrubber(name="gpt4o-prod", api_base="https://acme-west.openai.azure.com"):
    return Scrubber(
        Deployment(
            name=name,
            provider="azure",
            adapter="azure-openai",
            api_base=api_base,
            api_version="v1",
            provider_key_id="pk",
            provider_key_name="azure-prod",
        )
    )


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("see https://x.test/openai?api-version=1 now", "see [url] now"),
        ("wss://x.test/a", "[url]"),
        ("http://[bad", "[url]"),
        ("at acme.openai.azure.com:443/openai", "at [host]"),
        ("at acme.privatelink.openai.azure.us.", "at [host]."),
        ("at gw.internal failed", "at [host] failed"),
        ("at 10.1.2.3:8080.", "at [host]."),
        ("POST /openai/deployments/gpt4o/chat/completions failed", "POST [url] failed"),
        ("The deployment 'my-dep' is gone", "The deployment '[deployment]' is gone"),
        ("deployment: `my-dep`", "deployment: `[deployment]`"),
        ("failed\nTraceback (most recent call last):\n  File x", "failed"),
        ("token eyJhbGciOiJI.eyJzdWIi.sig!", "token [token]!"),
        ("key sk-0123456789abcdefgh", "key [token]"),
        ("provided: sk-proj-********************AbCd.", "provided: [token]."),
        (
            "https://aka.ms/x and learn.microsoft.com/y",
            "https://aka.ms/x and learn.microsoft.com/y",
        ),
        ("'messages[0].content' of gpt-4.1 at 1.5", "'messages[0].content' of gpt-4.1 at 1.5"),
        (
            "response_format.json_schema.name is missing",
            "response_format.json_schema.name is missing",
        ),
    ],
)
def test_what_looks_like_ours_is_taken_out(said, shown):
    assert Scrubber().text(said) == shown


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("model gpt4o-prod, resource ACME-West.", "model [deployment], resource [host]."),
        ("gpt4o-prod-2 and my-gpt4o-prod", "gpt4o-prod-2 and my-gpt4o-prod"),
        ("gpt4o-prod.", "[deployment]."),
    ],
)
def test_what_is_known_to_be_ours_is_taken_out(said, shown):
    assert make_scrubber().text(said) == shown


def test_a_private_host_is_taken_out_but_its_first_label_is_just_a_word():
    scrubber = make_scrubber(api_base="https://gateway.corp.test:8443/x")
    assert scrubber.text("gateway.corp.test: bad gateway") == "[host]: bad gateway"


@pytest.mark.parametrize("name", ["host", "deployment", "", "url"])
def test_a_deployment_named_like_a_placeholder_breaks_nothing(name):
    assert make_scrubber(name=name).text("at 10.1.2.3") == "at [host]"


def test_a_deployment_without_a_readable_host_still_hides_its_name():
    assert make_scrubber(api_base="nonsense").text("gpt4o-prod") == "[deployment]"


def test_json_is_scrubbed_throughout_and_cut_off_when_deep():
    deep: object = "x"
    for _ in range(900):
        deep = [deep]
    value = {"a": ["10.0.0.1", 1, True, None], "CallStack": "x", "10.0.0.1": {}, "deep": deep}
    scrubbed = Scrubber().value(value)
    assert scrubbed["a"] == ["[host]", 1, True, None]
    assert set(scrubbed) == {"a", "[host]", "deep"}
    assert str(scrubbed["deep"]).count("[") == 7


def test_a_line_has_no_breaks_and_a_limit():
    assert one_line(" a\r\n\tb\x00\u2028c\ud800 ", 100) == "a b c"
    assert one_line("a" * 10, 3) == "aaa"


OURS = ["https://x.test", "acme.openai.azure.com", "10.0.0.1", "gpt4o-prod", "acme-west", "sk-"]
REST = ["deployment ", "'", " ", ".", "/", ":", "[", "]", "eyJabcdefgh", "[host]", "openai", "a"]
fragments = st.sampled_from([*OURS, *REST])


@given(st.lists(fragments | st.text(max_size=3), max_size=8).map("".join))
def test_a_scrubbed_text_stays_as_it_is(text):
    for scrubber in (Scrubber(), make_scrubber()):
        once = scrubber.text(text)
        assert scrubber.text(once) == once


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_known_host_and_name_standing_alone_never_survive(before, after):
    shown = make_scrubber().text(f"{before} gpt4o-prod acme-west.openai.azure.com {after}")
    assert "gpt4o-prod" not in shown
    assert "acme-west" not in shown
