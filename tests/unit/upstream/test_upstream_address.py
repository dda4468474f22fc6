"""api_base, api_version and deployment names: what is normalised, what is refused and how."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aisix.errors import FieldError
from aisix.upstream.address import check_deployment_name, parse_api_base, parse_api_version

AZURE = "https://acme-west.openai.azure.com"


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("acme-west", AZURE),
        ("  Acme-West \n", AZURE),
        ("acme_west", "https://acme_west.openai.azure.com"),
        (AZURE, AZURE),
        (AZURE + "/", AZURE),
        ("http://acme-west.openai.azure.com", AZURE),
        ("HTTPS://ACME-West.OpenAI.azure.com.", AZURE),
        (AZURE + ":443", AZURE),
        ("http://acme-west.openai.azure.com:80/x", AZURE),
        (AZURE + "/openai", AZURE),
        (AZURE + "/openai/v1/", AZURE),
        (AZURE + "/openai/deployments/gpt4o-prod/chat/completions", AZURE),
        ("https://acme.openai.azure.us", "https://acme.openai.azure.us"),
        ("https://acme.openai.azure.cn/x", "https://acme.openai.azure.cn"),
        (
            "https://acme.cognitiveservices.azure.com/openai",
            "https://acme.cognitiveservices.azure.com",
        ),
        ("https://acme.cognitiveservices.azure.us", "https://acme.cognitiveservices.azure.us"),
        (
            "https://acme.services.ai.azure.com/api/projects/first",
            "https://acme.services.ai.azure.com",
        ),
        # a port of its own, or more labels: somebody's relay, kept as written
        (AZURE + ":8443/openai/v1", AZURE + ":8443"),
        ("http://acme-west.openai.azure.com:443", "http://acme-west.openai.azure.com:443"),
        ("https://a.b.openai.azure.com/x", "https://a.b.openai.azure.com/x"),
        ("https://acme.openai.azure.com.evil.test/x", "https://acme.openai.azure.com.evil.test/x"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://localhost:80/", "http://localhost"),
        ("http://[::1]:8080/gw/", "http://[::1]:8080/gw"),
        ("http://[0:0::1]", "http://[::1]"),
        ("https://gw.corp.test/azure//west//", "https://gw.corp.test/azure/west"),
        ("https://gw.corp.test/azure/openai", "https://gw.corp.test/azure"),
        ("https://gw.corp.test/azure/openai/v1/", "https://gw.corp.test/azure"),
        ("https://gw.corp.test/azure/openai/v1/chat/completions", "https://gw.corp.test/azure"),
        (
            "https://gw.corp.test/openai/deployments/x/chat/completions",
            "https://gw.corp.test",
        ),
        ("https://gw.corp.test/openai/openai", "https://gw.corp.test"),
        ("https://gw.corp.test/openai/team-a", "https://gw.corp.test/openai/team-a"),
        ("https://gw.corp.test/my-openai", "https://gw.corp.test/my-openai"),
    ],
)
def test_an_api_base_is_brought_to_its_canonical_form(written, canonical):
    assert parse_api_base(written) == canonical
    assert parse_api_base(canonical) == canonical


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (None, "is missing"),
        ("  ", "is missing"),
        ("acme-west.openai.azure.com", "needs a scheme"),
        ("localhost:8080", "needs a scheme"),
        ("//acme.openai.azure.com", "needs a scheme"),
        ("ftp://acme.test", "must begin with https:// or http://"),
        ("file:///etc/passwd", "must begin with"),
        ("https://user:hunter2@acme.test", "user information"),
        ("https://acme.test/a@b", "user information"),
        ("https://acme.test/#part", "fragment"),
        ("https://ac me.test", "space"),
        ("https://acme.test/\x00", "control character"),
        ("https://acme.test\\evil", "backslash"),
        ("https://bücher.test", "xn--"),
        ("https://", "no valid host"),
        ("https:///path", "no valid host"),
        ("https://a..b", "no valid host"),
        ("https://acme%2etest", "no valid host"),
        ("https://acme.test:0", "port 0"),
        ("https://acme.test:99999", "host and port"),
        ("https://acme.test:https", "host and port"),
        ("https://[::1", "host and port"),
        ("https://[fe80::1%25eth0]", "IPv6"),
        ("https://acme.test/a/../b", ". or .."),
        ("https://acme.test/a/%2e%2e/b", ". or .."),
        ("https://acme.test/<x>", "characters that a URL cannot hold"),
        ("https://acme.test/%zz", "characters that a URL cannot hold"),
        ("https://acme.test/" + "a" * 3000, "longer than"),
        ("https://" + "a." * 200 + "test", "no valid host"),
    ],
)
def test_an_unusable_api_base_is_refused_with_the_reason(written, words):
    with pytest.raises(FieldError) as refused:
        parse_api_base(written)
    assert words in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("written", "fixes"),
    [
        (
            AZURE + "/openai/deployments/gpt4o-prod/chat/completions?api-version=2024-10-21",
            [f'api_base "{AZURE}"', 'model_name "gpt4o-prod"', 'api_version "2024-10-21"'],
        ),
        (
            AZURE + "/openai/v1/chat/completions?api-version=preview",
            [f'api_base "{AZURE}"', 'api_version "v1"'],
        ),
        (
            "https://gw.test/west/openai/deployments/gpt%2D4.1/embeddings?api-version=nonsense",
            ['api_base "https://gw.test/west"', 'model_name "gpt-4.1"'],
        ),
        ("https://gw.test/x?", ['api_base "https://gw.test/x"']),
    ],
)
def test_a_pasted_request_url_is_refused_with_its_corrected_parts(written, fixes):
    with pytest.raises(FieldError, match="must not have a query string") as refused:
        parse_api_base(written)
    for fix in fixes:
        assert fix in str(refused.value)


def test_a_key_in_a_pasted_query_is_not_repeated():
    with pytest.raises(FieldError) as refused:
        parse_api_base(f"{AZURE}/openai/deployments/%3Cx%3E/x?api-key=hunter2&api-version=hunter2")
    assert "hunter2" not in str(refused.value)
    assert "model_name" not in str(refused.value)


@pytest.mark.parametrize(
    ("written", "version"),
    [
        (None, "2024-10-21"),
        ("2024-10-21", "2024-10-21"),
        (" 2025-04-01-Preview ", "2025-04-01-preview"),
        ("v1", "v1"),
        ("V1", "v1"),
    ],
)
def test_an_api_version_is_checked(written, version):
    assert parse_api_version(written) == version


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("", "dated version"),
        ("preview", 'use "v1"'),
        ("Latest", 'use "v1"'),
        ("api-version=2024-10-21", 'write "2024-10-21"'),
        ("?x=1&api-version=2024-10-21&y=2", 'write "2024-10-21"'),
        ("2024-13-01", "dated version"),
        ("2024-02-31-preview", "dated version"),
        ("2024-1-1", "dated version"),
        ("2024-10-21-beta", "dated version"),
        ("2024-10-21&x=1", "dated version"),
        ("２０２４-10-21", "dated version"),
        ("v2", "dated version"),
    ],
)
def test_an_unusable_api_version_is_refused_with_the_fix(written, words):
    with pytest.raises(FieldError) as refused:
        parse_api_version(written)
    assert words in str(refused.value)


@pytest.mark.parametrize("name", ["gpt4o-prod", "gpt-4.1", "a", "A_b", "...x"])
def test_a_deployment_name_follows_azures_rule(name):
    check_deployment_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "é", "a?b", "a%2Fb", "a\n"])
def test_another_deployment_name_is_refused(name):
    with pytest.raises(FieldError, match="deployment name"):
        check_deployment_name(name)


urls = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["", "http://", "https://", "HTTPS://", "ftp://", "https:", "//"]),
    st.sampled_from(
        ["acme", "acme.openai.azure.com", "h.test", "[::1]", "1.2.3.4", "u:p@h", "é", "h..t", ""]
    ),
    st.sampled_from(["", ":", ":443", ":80", ":8443", ":0", ":x", ":99999"]),
    st.lists(
        st.sampled_from(["openai", "v1", "deployments", "x", "..", "", "%2e", "%", "a b", "api"])
    ).map(lambda segments: "".join("/" + segment for segment in segments)),
    st.sampled_from(["", "?", "?api-version=v1", "#", "?a=%zz", "/"]),
)


@given(st.one_of(urls, st.text()))
@example("https://[")
@example("https://ⅷ.test")
def test_any_text_is_either_refused_or_stable_under_a_second_reading(text):
    try:
        base = parse_api_base(text)
    except FieldError:
        return
    assert parse_api_base(base) == base
    assert base.startswith(("https://", "http://"))
    assert not base.endswith("/")
    assert not set(base) & set("?#@\\ ")


@given(st.text())
def test_any_api_version_is_either_refused_or_stable(text):
    try:
        version = parse_api_version(text)
    except FieldError:
        return
    assert parse_api_version(version) == version
