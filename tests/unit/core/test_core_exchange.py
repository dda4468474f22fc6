"""The phase table has no dead end and no way back."""

from __future__ import annotations

import pytest

from aisix.core.exchange import TRANSITIONS, Phase, Usage, merge_usage

TERMINAL = {Phase.DONE, Phase.ABORTED}


def test_only_done_and_aborted_are_terminal():
    assert {phase for phase, after in TRANSITIONS.items() if not after} == TERMINAL


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase not in TERMINAL])
def test_every_phase_can_abort(phase: Phase):
    assert Phase.ABORTED in TRANSITIONS[phase]


def test_no_phase_returns_to_an_earlier_one():
    order = list(Phase)
    for phase, after in TRANSITIONS.items():
        assert all(order.index(later) > order.index(phase) for later in after)


def test_merged_usage_takes_the_larger_of_each_field():
    first = Usage(prompt_tokens=5, completion_tokens=1, total_tokens=6)
    last = Usage(prompt_tokens=5, completion_tokens=3, total_tokens=8, cached_tokens=2)
    assert merge_usage(first, last) == last
    assert merge_usage(None, first) == first
