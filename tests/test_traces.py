"""The recorded traces hold the shipped policies to what they are published to make of them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from adaptive_kv.loader import load_policy
from adaptive_kv.replay import replay
from adaptive_kv.trace import read_trace

_DOCS = Path(__file__).parents[1] / "docs"
_TRACES = sorted(file.name.split(".")[0] for file in _DOCS.glob("traces/*.jsonl.gz"))
_POLICIES = ("ladder", "forecast", "fair", "latency_guard")

traces = pytest.mark.parametrize("trace", _TRACES)
policies = pytest.mark.parametrize("policy", _POLICIES)


@cache
def _figures(trace: str) -> dict[str, dict[str, Any]]:
    named = [(name, load_policy(name, {})[0]) for name in _POLICIES]
    found = replay(read_trace(_DOCS / "traces" / f"{trace}.jsonl.gz"), named)
    return {each.figures.policy: each.figures.to_dict() for each in found}


@traces
@pytest.mark.parametrize("policy", ["recorded", *_POLICIES])
def test_figures_are_those_published(trace: str, policy: str) -> None:
    """Replays have no chance in them: if a change is meant, `python benchmarks/replay.py`."""
    published = json.loads((_DOCS / "benchmarks" / "replay.json").read_text("utf-8"))
    assert _figures(trace)[policy] == published["traces"][trace][policy]


@traces
@policies
def test_no_policy_breaks_the_floor_for_long_or_turns_anybody_away(trace: str, policy: str) -> None:
    figures = _figures(trace)[policy]
    assert figures["under_floor_s"] <= 0.02 * figures["seconds"]
    assert figures["rejected"] == 0


@traces
def test_fair_keeps_more_tokens_in_full_than_the_ladder(trace: str) -> None:
    fair, ladder = (_figures(trace)[name]["share_by_mode"] for name in ("fair", "ladder"))
    assert fair["full"] > ladder["full"] + 0.05


def test_forecast_keeps_more_sequences_exact_than_the_ladder_when_memory_goes_suddenly() -> None:
    forecast, ladder = (_figures("sudden")[name] for name in ("forecast", "ladder"))
    assert forecast["exact_share"] > ladder["exact_share"] + 0.05
    assert forecast["switches_down"] < ladder["switches_down"]
