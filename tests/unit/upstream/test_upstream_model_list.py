"""What the list of models says to an operator who asks whether all is well."""

import json

import pytest

from aisix.core.resources import Deployment, ResourceKey
from aisix.errors import UpstreamUnreachable
from aisix.upstream.openai import OpenAI

JSON = {"content-type": "application/json"}
openai = OpenAI()


def deployment(name="gpt-4o"):
    return Deployment(
        name=name,
        provider="openai",
        adapter="openai",
        api_base="https://api.openai.com/v1",
        api_version="",
        provider_key_id="pk",
        provider_key_name="openai",
        credential=ResourceKey("sk-1"),
    )


def judge(status, body, *, name="gpt-4o", headers=JSON):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return openai.judge_answer(status, headers, data, deployment=deployment(name))


def models(*names):
    return {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}


def test_a_key_alone_is_right_when_there_is_a_list():
    finding = judge(200, models(), name="")
    assert (finding.ok, finding.message) == (True, "address and key are right")


@pytest.mark.parametrize("body", [models("a", "gpt-4o"), [{"id": "gpt-4o"}, 7, {}]])
def test_a_model_is_right_when_it_is_listed(body):
    finding = judge(200, body)
    assert (finding.ok, finding.message) == (True, "address, key and model are right")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (models("a/b", "c"), "(a/b, c)"),
        (models(*map(str, range(12))), "8, 9, …)"),
        (models(), "(it lists none)"),
    ],
)
def test_a_model_that_is_not_listed_is_named_beside_those_that_are(body, named):
    finding = judge(200, body)
    assert finding.stage == "deployment"
    assert '"gpt-4o"' in finding.message
    assert named in finding.fix


def test_a_list_that_is_cut_off_says_what_it_holds():
    cut = json.dumps(models("first", "gpt-4o", "third")).encode()[:-10]
    assert judge(200, cut).message == "address, key and model are right"
    elsewhere = judge(200, cut, name="fourth")
    assert elsewhere.ok
    assert "too long" in elsewhere.message


@pytest.mark.parametrize("body", [b"<html>", b"", {"data": 7}, {"id": "x"}, b'{"id":"\\u12'])
def test_what_is_no_list_is_another_address(body):
    finding = judge(200, body)
    assert (finding.stage, finding.message) == ("address", "the answer is no list of models")


@pytest.mark.parametrize(
    ("status", "body", "stage", "words"),
    [
        (401, {"error": {"code": "invalid_api_key", "message": "m"}}, "authentication", "the key"),
        (403, {"error": {"code": "unsupported_country", "message": "m"}}, "access", "refuses"),
        (403, b"<html>", "access", "something on the way"),
        (404, {"detail": "m"}, "address", "no list of models below"),
        (405, {"detail": "m"}, "address", "no list of models below"),
        (418, {"error": {"message": "m"}}, "upstream", "418"),
        (418, b"tea", "address", "not one of an OpenAI-compatible server"),
        (429, {"error": {"code": "insufficient_quota", "message": "m"}}, "limits", "quota"),
        (302, b"", "address", "no redirect is followed"),
        (503, b"", "upstream", "fails, whatever is asked"),
    ],
)
def test_a_refusal_says_what_is_at_fault(status, body, stage, words):
    finding = judge(status, body)
    assert finding.stage == stage
    assert words in finding.message
    assert finding.fix
    if isinstance(body, dict):
        assert finding.said == "m"


def test_what_a_key_looks_like_is_not_repeated():
    said = "Incorrect API key provided: sk-proj-0123456789abcdef."
    assert "0123456789" not in judge(401, {"error": {"message": said}}).said


def test_a_failure_is_told_as_for_every_upstream():
    finding = openai.judge_failure(UpstreamUnreachable("no such host", reason="dns"))
    assert (finding.stage, finding.message) == (
        "network",
        "the host name of api_base does not resolve",
    )
