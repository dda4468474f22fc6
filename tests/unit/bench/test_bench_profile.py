"""Samples of a profile and the stages they count for."""

from __future__ import annotations

from bench.profile import LOOP, by_stage, table

MAIN = "<module> (server.py:39);main (server.py:33);_run_once (asyncio/base_events.py:1922)"
SAMPLES = [
    f"{MAIN};serve (aisix/web/inference.py:88);run (aisix/pipeline.py:96) 3",
    f"{MAIN};run (aisix/pipeline.py:96);admit (aisix/limits/limiter.py:121) 2",
    f"{MAIN};_on_ready (aisix/transport/driver.py:120);decode (encodings/ascii.py:26) 4",
    f"{MAIN} 1",
    "_bootstrap (threading.py:1002);run (aisix/telemetry/lines.py:200) 50",
]


def test_a_sample_counts_for_the_innermost_stage_and_other_threads_for_none():
    assert by_stage(SAMPLES) == {"pipeline": 3, "limits": 2, "transport": 4, LOOP: 1}


def test_shares_are_of_the_cpu_time_of_a_request():
    text = table(by_stage(SAMPLES), 200.0)
    assert "| transport | 40.0 | 80 |" in text
    assert text.splitlines()[-1].endswith("| 10.0 | 20 |")
