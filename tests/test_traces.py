"""The recorded traces hold the shipped policies to what they make of them."""

from functools import cache
from pathlib import Path

import pytest

from adaptive_kv.loader import load_policy
from adaptive_kv.replay import Figures, replay
from adaptive_kv.trace import read_trace

_TRACES = Path(__file__).parents[1] / "docs" / "traces"
_POLICIES = ("ladder", "forecast", "fair")


@cache
def _figures(trace: str) -> dict[str, Figures]:
    policies = [(name, load_policy(name, {})[0]) for name in _POLICIES]
    found = replay(read_trace(_TRACES / f"{trace}.jsonl.gz"), policies)
    return {each.figures.policy: each.figures for each in found[1:]}


@pytest.mark.parametrize("policy", _POLICIES)
@pytest.mark.parametrize("trace", ["sawtooth", "sudden"])
def test_no_policy_breaks_the_floor_for_long_or_turns_anybody_away(trace: str, policy: str) -> None:
    figures = _figures(trace)[policy]
    assert figures.under_floor_s <= 0.02 * figures.seconds
    assert figures.rejected == 0


@pytest.mark.parametrize("trace", ["sawtooth", "sudden"])
def test_fair_keeps_more_tokens_in_full_than_the_ladder(trace: str) -> None:
    fair, ladder = (_figures(trace)[name].share_by_mode for name in ("fair", "ladder"))
    assert fair["full"] > ladder["full"] + 0.05
