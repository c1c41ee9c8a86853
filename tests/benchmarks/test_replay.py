"""The benchmark of replays makes a day of the traces; its document says what its figures say."""

import json
from pathlib import Path
from typing import Any

import pytest
from measuring import ROOT, run_benchmark

_POLICIES = {"ladder", "forecast", "fair", "latency_guard"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a day of twelve minutes gives."""
    output = tmp_path_factory.mktemp("replay") / "replay.json"
    document = output.with_suffix(".md")
    files = ("--output", str(output), "--document", str(document))
    run_benchmark("replay", "--hours", "0.2", "--rounds", "1", *files)
    found: dict[str, Any] = json.loads(output.read_text("utf-8"))
    return found


def test_the_day_is_as_long_as_it_says_and_never_rests(report: dict[str, Any]) -> None:
    assert report["day"]["seconds"] == pytest.approx(720, rel=0.05)
    num_turns = 720 / 180  # what came and went within a second is not in it
    tokens = [figures["recorded"]["tokens"] for figures in report["traces"].values()]
    assert report["day"]["tokens"] > 0.6 * num_turns * min(tokens)


def test_every_policy_replays_every_trace_and_the_day(report: dict[str, Any]) -> None:
    assert set(report["day_s"]) == _POLICIES
    assert all(seconds > 0 for seconds in report["day_s"].values())
    for figures in report["traces"].values():
        assert set(figures) == {"recorded"} | _POLICIES


def test_the_document_is_made_of_the_published_figures(tmp_path: Path) -> None:
    run_benchmark("replay", "--render-only", "--document", str(tmp_path / "replay.md"))
    published = ROOT / "docs" / "benchmarks" / "replay.md"
    assert (tmp_path / "replay.md").read_text("utf-8") == published.read_text("utf-8")
