"""The whole demonstration, somewhat quicker: real service, real squeeze, real broker."""

import json
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from broker import mosquitto
from cli.command import COMMAND, clean_environment

from adaptive_kv.demo.load import NUM_CLIENTS, make_prompt
from adaptive_kv.demo.run import run_demo
from adaptive_kv.demo.scenario import Pace
from adaptive_kv.errors import ConfigError

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


def test_what_the_demo_started_ends_with_it(tmp_path: Path) -> None:
    """Told to stop in the middle, it leaves neither service nor broker nor squeeze behind."""
    mosquitto()
    command = [COMMAND, "demo", "--report", str(tmp_path / "report.html")]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=clean_environment(tmp_path)
    ) as demo:
        assert demo.stderr is not None
        assert any("calm" in line for line in demo.stderr)
        started = children(demo.pid)
        demo.send_signal(signal.SIGTERM)
        demo.stderr.read()
        assert demo.wait(60) != 0
    assert len(started) == 3
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def children(pid: int) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            parent = int(file.read_text().rpartition(")")[2].split()[1])
            found += [int(file.parent.name)] if parent == pid else []
    return found


def test_a_report_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        run_demo(tmp_path / "absent" / "report.html")


def test_prompts_state_a_code_early_and_ask_for_it_late() -> None:
    prompts = [make_prompt(number) for number in range(40)]
    assert len(set(prompts)) == len(prompts)
    for prompt in prompts:
        name = prompt.rsplit("What is the code of ", 1)[1].rstrip("?")
        assert prompt.index(f"the code of {name} is") < 200
        assert len(prompt) > 6000
