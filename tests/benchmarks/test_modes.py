"""The page about modes says what its figures say, and its figures are what is measured today."""

import json
from pathlib import Path
from typing import Any

import pytest
from measuring import ROOT, run_benchmark

_MODES = ("full", "int4", "window:512+int4", "disabled")
Report = dict[str, Any]


@pytest.fixture(scope="module")
def published() -> Report:
    found: Report = json.loads((ROOT / "docs" / "benchmarks" / "modes.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Some of the modes, measured now."""
    output = tmp_path_factory.mktemp("modes") / "modes.json"
    document = output.with_suffix(".md")
    flags = ("--rounds", "1", "--output", str(output), "--document", str(document))
    run_benchmark("modes", "--modes", *_MODES, *flags)
    found: Report = json.loads(output.read_text("utf-8"))
    return found


def _by_pair(report: Report) -> dict[tuple[str, str], Report]:
    return {(found["from_mode"], found["to_mode"]): found for found in report["switches"]}


def test_the_document_is_made_of_the_published_figures(tmp_path: Path) -> None:
    run_benchmark("modes", "--render-only", "--document", str(tmp_path / "modes.md"))
    page = ROOT / "docs" / "modes.md"
    assert (tmp_path / "modes.md").read_text("utf-8") == page.read_text("utf-8")


def test_every_pair_of_the_seven_forms_is_published(published: Report) -> None:
    assert len(published["modes"]) == 7
    assert len(_by_pair(published)) == 49


def test_switches_move_and_free_what_is_published(report: Report, published: Report) -> None:
    told = _by_pair(published)
    for pair, found in _by_pair(report).items():
        for key in ("before_bytes", "after_bytes", "moved_bytes", "recomputed_tokens"):
            assert found[key] == told[pair][key], (pair, key)


def test_switches_lose_what_is_published(report: Report, published: Report) -> None:
    told = _by_pair(published)
    for pair, found in _by_pair(report).items():
        wanted = told[pair]["kl_divergence"]
        assert found["kl_divergence"] == pytest.approx(wanted, rel=0.25, abs=1e-6), pair
        assert abs(found["top1_agreement"] - told[pair]["top1_agreement"]) < 0.02, pair


def test_calibration_finds_what_is_published(report: Report, published: Report) -> None:
    for dtype, told in published["calibrations"].items():
        found = report["calibrations"][dtype]
        assert found["num_positions"] == told["num_positions"]
        for name, loss in told["formats"].items():
            agreement = found["formats"][name]["top1_agreement"]
            assert agreement == pytest.approx(loss["top1_agreement"], abs=0.01)
    assert published["calibrations"]["float32"]["formats"]["int8"]["top1_agreement"] >= 0.99


def test_what_is_exact_and_what_is_not(published: Report) -> None:
    """Only computing again brings back what was lost; whatever was packed before."""
    for (from_mode, to_mode), found in _by_pair(published).items():
        is_exact = {from_mode, to_mode} <= {"full", "disabled"} or to_mode == "disabled"
        assert (found["kl_divergence"] < 1e-9) == is_exact, (from_mode, to_mode)


def test_the_page_ranks_losses_as_they_are(published: Report) -> None:
    """A window loses more than any packing, and packing again as much as packing at once."""
    kl = {pair: found["kl_divergence"] for pair, found in _by_pair(published).items()}
    assert kl["int8", "int8"] < kl["int4", "int4"] < kl["window:512", "window:512"]
    assert kl["int8", "int4"] == pytest.approx(kl["full", "int4"], rel=0.25)
    assert kl["window:512", "full"] < kl["full", "window:512"]
