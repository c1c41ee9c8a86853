"""The whole demonstration, somewhat quicker: real service, real squeeze, real broker."""

import json
from pathlib import Path

import pytest
from broker import mosquitto

from adaptive_kv.demo.load import NUM_CLIENTS, make_prompt
from adaptive_kv.demo.run import run_demo
from adaptive_kv.demo.scenario import Pace

QUICK = Pace(calm_s=1.0, step_s=0.8, shrink=0.75, hold_s=2.0, grow=2.5, after_s=1.0)


def test_a_squeeze_walks_the_ladder_and_nothing_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ends with one line of JSON, whose figures show what the run was for."""
    mosquitto()
    report = tmp_path / "demo-report.html"
    status = run_demo(report, QUICK)
    captured = capsys.readouterr()
    assert status == 0, captured.err
    told = json.loads(captured.out.splitlines()[-1])
    assert list(told) == [
        "requests",
        "completed",
        "failed",
        "switches",
        "modes_seen",
        "oom",
        "peak_cache_bytes",
        "tokens_per_s",
    ]
    assert told["requests"] >= NUM_CLIENTS == 16
    assert (told["completed"], told["failed"], told["oom"]) == (told["requests"], 0, 0)
    assert told["switches"] > 0
    assert {"full", "window:512+int4"} <= set(told["modes_seen"])
    assert {"int8", "int4"} & set(told["modes_seen"])
    assert told["peak_cache_bytes"] > 0
    assert told["tokens_per_s"] > 0
    shown = report.read_text("utf-8")
    assert "16</b><span>sequences at once" in shown
    assert "An MQTT subscriber heard" in shown
    assert "to full: " in shown, "the way back up"


def test_prompts_state_a_code_early_and_ask_for_it_late() -> None:
    prompts = [make_prompt(number) for number in range(40)]
    assert len(set(prompts)) == len(prompts)
    for prompt in prompts:
        name = prompt.rsplit("What is the code of ", 1)[1].rstrip("?")
        assert prompt.index(f"the code of {name} is") < 200
        assert len(prompt) > 6000
