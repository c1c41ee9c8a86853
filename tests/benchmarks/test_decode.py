"""The benchmark runs, and its document says what its figures say."""

import json
from pathlib import Path
from typing import Any

import pytest
from measuring import ROOT, run_benchmark


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a tiny run writes."""
    output = tmp_path_factory.mktemp("decode") / "decode.json"
    run_benchmark(
        "decode",
        *("--models", "tiny", "--contexts", "48", "--sequences", "1", "2"),
        *("--modes", "full", "int4", "--rounds", "2", "--turn-tokens", "3"),
        *("--output", str(output), "--document", str(output.with_suffix(".md"))),
    )
    found: dict[str, Any] = json.loads(output.read_text("utf-8"))
    return found


def test_every_case_compares_every_mode_with_every_opponent(report: dict[str, Any]) -> None:
    alone, two = report["cases"]
    assert [case["num_sequences"] for case in (alone, two)] == [1, 2]
    assert set(alone["speeds"]) == {"generate", "full", "int4"}
    assert set(two["speeds"]) == {"generate", "generate_batch", "full", "int4"}
    for case, opponents in ((alone, {"generate"}), (two, {"generate", "generate_batch"})):
        for mode in ("full", "int4"):
            assert set(case["ratios"][mode]) == opponents
            assert all(ratio.keys() == {"wall", "cpu"} for ratio in case["ratios"][mode].values())


def test_both_sides_decode_the_same_tokens(report: dict[str, Any]) -> None:
    assert [case["equal_tokens"] for case in report["cases"]] == ["7 of 7", "7 of 7"]


def test_speeds_are_positive_and_rounds_are_told(report: dict[str, Any]) -> None:
    assert (report["num_rounds"], report["turn_tokens"]) == (2, 3)
    assert report["machine"]["threads"] == 1
    speeds = [speed for case in report["cases"] for speed in case["speeds"].values()]
    assert all(value > 0 for speed in speeds for value in speed.values())


def test_the_document_is_made_of_the_published_figures(tmp_path: Path) -> None:
    run_benchmark("decode", "--render-only", "--document", str(tmp_path / "benchmarks.md"))
    published = ROOT / "docs" / "benchmarks.md"
    assert (tmp_path / "benchmarks.md").read_text("utf-8") == published.read_text("utf-8")
