"""The tables of the benchmark fit together, and its settings are read as they are meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import load
from bench.client import ChunkCounter
from bench.contenders import DEPLOYMENTS, Cpus, cpus
from bench.field import FIELD, OURS, PEERS, taking_part, wanted_peers
from bench.gateway import alias_number, called, caller_number
from bench.load import Target, command, request_body
from bench.nginx import Front, render
from bench.peers import PEERS_TABLE, npm_manifest
from bench.rivals import envoy_config, litellm_config, tensorzero_config
from bench.scenarios import SCENARIOS, Scenario, select
from bench.settings import BadSetting, Settings, parse

TARGET = Target("http://127.0.0.1:1/x", "m", (("Accept-Encoding", "identity"),))


def words_after(words: list[str], flag: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == flag]


def test_every_scenario_has_an_id_of_its_own_and_known_contenders():
    assert len({scenario.id for scenario in SCENARIOS}) == len(SCENARIOS)
    for scenario in SCENARIOS:
        assert set(scenario.contenders) <= set(FIELD)
        assert scenario.deployment in DEPLOYMENTS


def test_the_set_is_chosen_by_group_id_or_pattern():
    assert select(["all"]) == list(SCENARIOS)
    assert {row.id for row in select(["echo-*", "soak"])} == {"echo-c1", "echo-c64", "soak"}
    assert all(row.quick for row in select(["quick"]))
    with pytest.raises(ValueError, match="no scenario 'ecko'"):
        select(["ecko"])


def test_rivals_take_part_only_when_asked_for():
    (echo,) = select(["echo-c64"])
    assert {c.name for c in taking_part(echo, set())} == set(echo.contenders) - set(PEERS)
    assert {c.name for c in taking_part(echo, wanted_peers(["all"]))} == set(echo.contenders)
    assert wanted_peers(["envoy"]) == {"envoy"}
    with pytest.raises(ValueError, match="no rival 'kong'"):
        wanted_peers(["kong"])


def test_every_rival_has_pins_and_ours_need_none():
    assert {peer.name for peer in PEERS_TABLE} == set(PEERS)
    assert not set(OURS) & set(PEERS)


def test_npm_may_take_no_other_version_of_a_pin():
    manifest = npm_manifest(["@a/b@1.2.3", "c@4.5.6"])
    assert manifest["overrides"] == manifest["dependencies"] == {"@a/b": "1.2.3", "c": "4.5.6"}


def test_settings_have_defaults_and_are_read():
    assert parse({}) == Settings()
    given = parse({"BENCH_SECONDS": "1", "BENCH_ONLY": "echo-c1, soak", "BENCH_OUT": "x/y.json"})
    assert (given.seconds, given.only, given.out) == (1.0, ("echo-c1", "soak"), Path("x/y.json"))
    assert given.warm_up_s == 0.5


@pytest.mark.parametrize(
    "environ", [{"BENCH_SECONDS": "0"}, {"BENCH_ROUNDS": "1.5"}, {"BENCH_SOAK_SECONDS": "long"}]
)
def test_a_setting_that_cannot_be_used_is_named(environ):
    with pytest.raises(BadSetting, match=next(iter(environ))):
        parse(environ)


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ([3], Cpus((3,), (3,), 3, 3)),
        ([0, 1], Cpus((0,), (0,), 1, 1)),
        ([0, 1, 2], Cpus((0,), (0, 1), 2, 2)),
        ([0, 1, 2, 3], Cpus((0,), (0, 1), 2, 3)),
    ],
)
def test_the_load_has_a_cpu_of_its_own_where_there_are_two(allowed, expected):
    assert cpus(allowed) == expected


def test_a_target_replaces_headers_of_the_sdk_by_name():
    words = command(TARGET, Scenario("x", "x"), Path("body"))
    headers = words_after(words, "-H")
    assert "Accept-Encoding: identity" in headers
    assert len(headers) == len(load.SDK_HEADERS)


def test_the_command_says_what_the_scenario_wants():
    scenario = Scenario(
        "x", "x", connections=7, chunks=50, lockstep=True, keys=10, aliases=5, rate=9, limit_rps=1
    )
    words = command(TARGET, scenario, Path("body"))
    assert words_after(words, "-c") == ["7"]
    assert words_after(words, "-s") == ["50"]
    assert words_after(words, "-V") == ["10:5"]
    assert words_after(words, "-x") == ["429"]
    assert "-g" in words


def test_marks_are_as_wide_as_the_numbers_that_replace_them():
    assert len(caller_number(999)) == len(load.KEY_MARK)
    assert len(alias_number(49)) == len(load.ALIAS_MARK)
    many = called("http://127.0.0.1:1/", Scenario("x", "x", keys=1000, aliases=50))("echo")
    assert many.model == "echo-@mm@"
    assert "@kkkk@" in dict(many.headers)["Authorization"]


@pytest.mark.parametrize("size", [0, 200_000, 20_000_000])
def test_a_body_is_about_as_large_as_asked(size):
    body = request_body("m", chunks=1, body_bytes=size)
    assert size * 0.95 < len(body) < size * 1.05 + 1000
    assert json.loads(body)["stream"] is True


def test_chunks_are_counted_however_the_stream_is_cut():
    text = b'data: {"content":" t12"}\n\ndata: {"content": " t13"}\n\ndata: [DONE]\n\n'
    for cut in range(1, len(text)):
        counter = ChunkCounter()
        counter.feed(text[:cut])
        counter.feed(text[cut:])
        assert (counter.chunks, counter.done, counter.total_bytes) == (2, True, len(text))


def test_nginx_listens_as_its_front_says():
    front = Front(8443, "127.0.0.1:9", certificate=Path("c.pem"), http2=True, key="k")
    text = render(front, Path("folder"), files=100, root=False)
    assert "listen 127.0.0.1:8443 backlog=4096 ssl http2;" in text
    assert "ssl_certificate c.pem;" in text
    assert "proxy_set_header api-key k;" in text
    assert "user root" not in text


def test_every_rival_knows_every_deployment():
    upstream = "http://127.0.0.1:9"
    assert json.dumps(envoy_config(8, upstream)).count('"port_value": 9') == 1
    listed = litellm_config(upstream)["model_list"]
    assert isinstance(listed, list)
    assert [model["model_name"] for model in listed] == list(DEPLOYMENTS)
    assert tensorzero_config(upstream).count("deployment_id") == len(DEPLOYMENTS)
