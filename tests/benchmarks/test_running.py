"""Every benchmark with a page runs and measures everyone; tests of its page are beside this."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from measuring import run_benchmark

_MODES = {"full", "int8", "int4"}
_EARLIER = {
    "prompt_tokens": 1,
    "points": [
        {"length": 8, "with_s": 1.0, "without_s": 1.0, "ratio": {"wall": 1.0, "cpu": 1.0}},
        {"length": 16, "with_s": 1.0, "without_s": 8.0, "ratio": {"wall": 8.0, "cpu": 8.0}},
    ],
    "machine": dict.fromkeys(("cpu", "threads", "python", "torch", "transformers"), ""),
    "load": 0.0,
}
Case = dict[str, Any]
Run = Callable[[str], dict[str, Case]]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The cases of a tiny run, by name. That of the curve finds cases of an earlier one."""

    @cache
    def run(name: str) -> dict[str, Case]:
        output = tmp_path_factory.mktemp(name) / f"{name}.json"
        document = output.with_suffix(".md")
        old = [_EARLIER | {"name": each} for each in ("earlier", "ours")]
        output.write_text(json.dumps({"cases": old if name == "curve" else []}))
        files = ("--output", str(output), "--document", str(document))
        run_benchmark(name, "--quick", "--keep", *files)
        cases = json.loads(output.read_text("utf-8"))["cases"]
        return {case["name"]: case for case in cases}

    return run


def _speeds_are_positive(case: Case) -> bool:
    return all(value > 0 for speed in case["speeds"].values() for value in speed.values())


def test_behind_a_context_every_mode_is_held_against_every_cache(quick: Run) -> None:
    """What is not installed is told; what comes with transformers is always there."""
    always = {"DynamicCache", "StaticCache", "continuous batching"}
    optional = {"quanto int4", "hqq int4", "hqq int8"}
    for case in quick("contexts").values():
        peers = set(case["speeds"]) - set(case["ratios"])
        assert always <= peers
        assert peers | set(case["absent"]) == always | optional
        for mode, ratios in case["ratios"].items():
            assert set(ratios) == set(case["speeds"]) - {mode}
        assert _speeds_are_positive(case)


def test_behind_a_context_pages_are_in_the_form_of_their_mode(quick: Run) -> None:
    for case in quick("contexts").values():
        num_bytes = case["cache_bytes"]
        assert num_bytes["int4"] < num_bytes["int8"] < num_bytes["full"]
        assert num_bytes["window:1024+int4"] < num_bytes["window:1024"] <= num_bytes["full"]


def test_the_curve_tells_every_length_of_both_sides(quick: Run) -> None:
    for case in (quick("curve")[side] for side in ("transformers", "ours")):
        assert [point["length"] for point in case["points"]] == [4, 8, 12, 16]
        for key in ("with_s", "without_s"):
            seconds = [point[key] for point in case["points"]]
            assert seconds == sorted(seconds)


def test_streams_get_the_answers_of_continuous_batching(quick: Run) -> None:
    for case in quick("streams").values():
        assert set(case["ratios"]) == _MODES
        assert set(case["speeds"]) == _MODES | {"continuous batching"}
        num_equal, _, num_answers = case["equal_answers"].split()
        assert num_equal == num_answers
        assert _speeds_are_positive(case)


def test_servers_are_asked_in_every_mode_and_the_absent_are_named(quick: Run) -> None:
    cases = quick("served")
    assert [case["num_streams"] for case in cases.values()] == [1, 2]
    for case in cases.values():
        assert set(case["ratios"]) == {f"ours, {mode}" for mode in _MODES}
        for peer in ("transformers", "vLLM", "llama-server"):
            assert any(name.startswith(peer) for name in (*case["speeds"], *case["absent"]))
        assert _speeds_are_positive(case)


def test_a_switch_is_measured_to_its_end_and_back(quick: Run) -> None:
    cases = quick("switches")
    assert set(cases) == {"full to int4", "int4 to full", "int4 to full, healing"}
    for case in cases.values():
        assert case["quiet_p50_ms"] > 0
        assert 0 < case["p50_ms"] <= case["p99_ms"]
    assert cases["int4 to full, healing"]["num_steps"] > cases["int4 to full"]["num_steps"]


def test_cases_of_other_runs_are_kept_and_its_own_replaced(quick: Run) -> None:
    cases = quick("curve")
    assert cases["earlier"] == _EARLIER | {"name": "earlier"}
    assert cases["ours"]["prompt_tokens"] == 16
