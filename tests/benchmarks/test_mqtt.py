"""The benchmark of publishing measures every broker, and its document says what its figures say."""

import json
from pathlib import Path
from typing import Any

import pytest
from broker import mosquitto
from measuring import ROOT, run_benchmark


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a tiny run writes, and prints."""
    mosquitto()
    output = tmp_path_factory.mktemp("mqtt") / "mqtt.json"
    document = output.with_suffix(".md")
    quick = ("--seconds", "0.5", "--per-second", "3000")
    printed = run_benchmark("mqtt", *quick, "--output", str(output), "--document", str(document))
    found: dict[str, Any] = json.loads(output.read_text("utf-8"))
    assert json.loads(printed) == found
    return found


def test_every_event_is_told_kept_or_dropped(report: dict[str, Any]) -> None:
    rows = report["brokers"]
    assert set(rows) == {"well", "frozen", "away"}
    for row in rows.values():
        accounted = row["events_told"] + row["events_kept"] + row["events_dropped"]
        assert accounted == row["events"] == 1500
        assert row["events_kept"] <= 1024
    assert rows["well"]["events_kept"] == 0
    assert rows["well"]["events_told"] > 0
    assert rows["away"]["events_told"] == rows["frozen"]["events_told"] == 0


def test_enqueuing_is_measured(report: dict[str, Any]) -> None:
    for row in report["brokers"].values():
        costs = [row[f"enqueue_{key}_us"] for key in ("p50", "p99", "p999", "max")]
        assert costs[0] > 0
        assert costs == sorted(costs)
        assert row["rss_end_mib"] > 0


def test_the_document_is_made_of_the_published_figures(tmp_path: Path) -> None:
    run_benchmark("mqtt", "--render-only", "--document", str(tmp_path / "mqtt.md"))
    published = ROOT / "docs" / "benchmarks" / "mqtt.md"
    assert (tmp_path / "mqtt.md").read_text("utf-8") == published.read_text("utf-8")
