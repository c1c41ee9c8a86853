"""The benchmark of policies measures all of them, and its document says what its figures say."""

import json
from pathlib import Path
from typing import Any

import pytest
from measuring import ROOT, run_benchmark

_SHIPPED = {"fixed", "ladder", "latency_guard", "forecast", "fair"}
_IN_A_CHILD = {
    "well", "raises", "spins", "sleeps", "answers NaN", "unknown mode", "flaps", "eats memory",
    "exits",
}  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a tiny run writes."""
    output = tmp_path_factory.mktemp("policies") / "policies.json"
    document = output.with_suffix(".md")
    files = ("--output", str(output), "--document", str(document))
    run_benchmark("policies", "--rounds", "1", "--steps", "6", *files)
    found: dict[str, Any] = json.loads(output.read_text("utf-8"))
    return found


def test_tokens_come_under_every_policy(report: dict[str, Any]) -> None:
    rows = report["policies"]
    assert set(rows) == _SHIPPED | _IN_A_CHILD
    assert {name for name, row in rows.items() if row["is_in_process"]} == _SHIPPED
    figures = [value for row in rows.values() for key, value in row.items() if "_p" in key[-7:]]
    assert len(figures) == 5 * len(rows)
    assert all(value > 0 for value in figures)


def test_consulting_is_measured_at_work(report: dict[str, Any]) -> None:
    assert (report["num_sequences"], len(report["ladder"])) == (8, 5)


def test_the_document_is_made_of_the_published_figures(tmp_path: Path) -> None:
    run_benchmark("policies", "--render-only", "--document", str(tmp_path / "policies.md"))
    published = ROOT / "docs" / "benchmarks" / "policies.md"
    assert (tmp_path / "policies.md").read_text("utf-8") == published.read_text("utf-8")
