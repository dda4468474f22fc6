"""openai-js as the client: both classes, whole and streamed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.process import CALLER_KEY, Stand

SAID = "Hello from Azure OpenAI! You said: ping"


@pytest.mark.service("node", "npm")
def test_openai_js_gets_answers_streams_and_errors(bench: Stand, js_folder: Path) -> None:
    alias = bench.alias("gpt4o-prod")
    filtered = bench.alias("gpt4o-err-content_filter")
    broken = bench.alias("gpt4o-cut3")
    done = subprocess.run(
        ["node", "smoke.mjs", bench.gateway.proxy, CALLER_KEY, alias, filtered, broken],
        cwd=js_folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert set(seen) == {"OpenAI", "AzureOpenAI"}
    for name, answers in seen.items():
        unknown, refused, cut = (answers.pop(key) for key in ("unknown", "filtered", "cut"))
        assert answers == {
            "whole": SAID,
            "model": alias,
            "id": True,
            "streamed": SAID,
            "usage": 7,
            "vectors": [8, 8],
            "listed": True,
            "retrieved": alias,
        }, name
        assert (unknown["kind"], unknown["code"]) == ("NotFoundError", "model_not_found")
        assert (refused["kind"], refused["status"]) == ("BadRequestError", 400)
        assert refused["code"] == "content_filter"
        assert refused["id"]
        assert (cut["kind"], cut["code"]) == ("APIError", "stream_aborted")
