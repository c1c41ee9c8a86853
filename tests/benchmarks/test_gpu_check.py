"""What is measured on a GPU can be gone through on a CPU, and finds nothing wrong there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a dry run writes."""
    output = tmp_path_factory.mktemp("gpu") / "gpu.json"
    command = [sys.executable, str(_ROOT / "benchmarks" / "gpu_check.py"), "--dry"]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(
        [*command, "--output", str(output)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(output.read_text("utf-8"))
    return found


def test_kernels_are_compared_with_plain_torch(report: dict[str, Any]) -> None:
    kernels = report["kernels"]
    assert len(kernels["attention"]) == 4
    assert all(0 < case["error"] < 0.03 for case in kernels["attention"])
    assert len(kernels["switches"]) == 6
    assert all(case["is_right"] for case in kernels["attention"] + kernels["switches"])
    assert all(case["bytes_per_s"] > 0 for case in kernels["switch_speed"])
    assert {case["mode"] for case in kernels["prefill"]} == {"full", "int8", "int4"}


def test_every_format_decodes_against_generate(report: dict[str, Any]) -> None:
    assert [case["model"] for case in report["decode"]] == ["Qwen2.5-0.5B", "Llama-3.2-1B"]
    for case in report["decode"]:
        for name in ("full", "int8", "int4", "generate", "generate_static"):
            assert case[name]["tokens_per_s"] > 0
        assert all(case[name]["layers_step_s"] > 0 for name in ("full", "int8", "int4"))
        assert case["graphs"] == {"why_none": None, "num_bytes": 0}
        assert case["int4"]["read_bytes"] < case["int8"]["read_bytes"] < case["full"]["read_bytes"]


def test_a_step_waits_for_the_device_once_however_its_tokens_are_chosen(
    report: dict[str, Any],
) -> None:
    assert len(report["waits"]) == 8
    assert {case["waits"] for case in report["waits"]} == {1}
    assert all(case["is_right"] for case in report["waits"])


def test_other_ways_to_start_kernels_are_measured(report: dict[str, Any]) -> None:
    *each, together = report["tuning"]["found"]
    assert all(case["share"] > 0 for case in (*each, together))
    changed = [name for case in each for name in case["tuning"]]
    assert changed == ["programs_per_core"] * 3 + ["chunk_tile"] * 2
    assert set(together["tuning"]) <= set(changed)


def test_a_neighbour_makes_the_engine_switch_and_nothing_fails(report: dict[str, Any]) -> None:
    squeeze = report["squeeze"]
    assert squeeze["most_held_bytes"] > 0
    assert squeeze["events"]["mode_changed"] > 0
    assert (squeeze["completed"], squeeze["failed"]) == (squeeze["requests"], 0)
