"""The Debian package on a real systemd: what a box goes through, from its install to its removal.

A machine is booted once, on an overlay of this one's files (`machine`), `inside` does everything
there and writes down what it saw, and every test here is about a part of that.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from boot.machine import boot, torch_of_the_box, why_no_boot
from build_deb import build

ROOT = Path(__file__).parents[2]
LOCK, PAGE = ROOT / "packaging" / "requirements.lock", ROOT / "docs" / "operations.md"
PATIENCE_S = 400

Seen = dict[str, Any]
See = Callable[[str], Seen]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    if why := why_no_boot():
        pytest.skip(f"no systemd was booted, so that nothing is known of the units: {why}")
    out = tmp_path_factory.mktemp("boot")
    wheels, package = out / "wheels", build(out)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(wheels), "--requirement", str(LOCK)]
    subprocess.run(command, check=True)
    given = {wheels: "/opt/wheels", package: f"/opt/given/{package.name}"} | torch_of_the_box(out)
    given[PAGE] = f"/opt/given/{PAGE.name}"
    console = boot("boot.inside", given, out, patience_s=PATIENCE_S)
    found = out / "seen.json"
    assert found.exists(), console
    seen: dict[str, Seen] = json.loads(found.read_text())
    return seen


@pytest.fixture
def see(everything: dict[str, Seen]) -> See:
    """What was seen in a step."""

    def find(step: str) -> Seen:
        seen = everything[step]
        assert "error" not in seen, seen["error"]
        return seen

    return find


def is_running(unit: dict[str, str]) -> bool:
    return (unit["ActiveState"], unit["SubState"]) == ("active", "running")


def test_installing_makes_user_folders_and_environment_and_starts_the_service(see: See) -> None:
    """From packages in a folder, by the hashes of the lock; torch is the box's own."""
    seen = see("install")
    assert seen["status"] == 0, seen["output"]
    assert is_running(seen["unit"])
    assert seen["ready"] == 200
    assert seen["owner"] == "adaptive-kv"
    assert re.search(r"^ladder +adaptive_kv_policies", seen["policies"], re.MULTILINE)
    locked = re.findall(r"^([\w-]+)==", LOCK.read_text(), re.MULTILINE)
    faults = [line for line in seen["pip_check"].splitlines() if line.split()[0] in locked]
    assert faults == []


def test_systemctl_shows_how_the_first_start_goes(see: See) -> None:
    """As `systemctl status` shows it."""
    seen = see("install")
    tasks = [text.partition(":")[0] for text in seen["texts"]]
    shown = [task for task in dict.fromkeys(tasks) if task and not task.startswith("full")]
    assert shown[-3:] == ["checking the model", "calibrating", "measuring speed"]
    calibrating = next(text for text in seen["texts"] if text.startswith("calibrating"))
    assert re.fullmatch(r"calibrating: \d+ of 1938 tokens(, \d+ s left)?", calibrating)
    assert re.match(r"full \(.*\), 0 running, 0 waiting", seen["unit"]["StatusText"])


def test_credentials_are_handed_over_and_shown_to_nobody(see: See) -> None:
    """The token is asked for, and a broker that wants the password has let the service in."""
    seen = see("configure")
    assert (seen["with_token"], seen["with_another"]) == (200, 401)
    assert seen["availability"] == "online"
    assert not seen["in_environment"]


def test_a_switch_is_found_by_where_it_went(see: See) -> None:
    """`journalctl ADAPTIVE_KV_TO=int4`."""
    seen = see("switch")
    (switch,) = [one for one in seen["entries"] if one["ADAPTIVE_KV_EVENT"] == "mode_changed"]
    assert switch["ADAPTIVE_KV_FROM"] == "full"
    assert switch["ADAPTIVE_KV_REASON"] == "pinned by hand"
    assert switch["ADAPTIVE_KV_SEQUENCES"] == "1"
    assert int(switch["ADAPTIVE_KV_FREED_BYTES"]) > 0
    assert float(switch["ADAPTIVE_KV_DURATION_S"]) > 0
    assert switch["MESSAGE"].startswith("mode_changed ")
    assert (switch["SYSLOG_IDENTIFIER"], switch["PRIORITY"]) == ("adaptive-kv", "6")


def test_long_entries_stay_whole(see: See) -> None:
    """A traceback is one entry, and a megabyte is one."""
    seen = see("long_entries")
    (broken,) = seen["broken"]
    assert broken["MESSAGE"].splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert broken["ADAPTIVE_KV_DETAIL"] == "first line\nsecond line"
    assert seen["large"] == 10**6


def test_a_reload_changes_what_runs(see: See) -> None:
    """`systemctl reload` ends once the new configuration is in force."""
    seen = see("reload")
    assert seen["status"] == 0
    (entry,) = seen["entries"]
    assert entry["ADAPTIVE_KV_CHANGED"] == '["cache.ladder"]'
    assert is_running(seen["unit"])


def test_a_stuck_worker_is_aborted_and_started_anew(see: See) -> None:
    """Though HTTP still answers; and only then: an idle worker is left alone."""
    seen = see("freeze")
    assert seen["before"]["NRestarts"] == "0"
    assert seen["answered"]
    assert "adaptive-kv.service: Watchdog timeout (limit 4s)!" in seen["manager"]
    assert "adaptive-kv.service: Failed with result 'watchdog'." in seen["manager"]
    assert is_running(seen["unit"])
    assert seen["unit"]["NRestarts"] == "1"
    assert seen["serves"] == 200


def test_an_abort_leaves_in_the_log_where_every_thread_was(see: See) -> None:
    """The worker among them."""
    seen = see("freeze")
    assert "Fatal Python error: Aborted" in seen["output"]
    assert any(re.search(r"engine/worker.py\", line \d+ in step$", s) for s in seen["output"])


def test_a_sigkill_is_survived(see: See) -> None:
    seen = see("kill")
    assert is_running(seen["unit"])
    assert seen["unit"]["MainPID"] != seen["before"]["MainPID"]
    assert seen["serves"] == 200


def test_the_commands_of_the_page_for_operators_work(see: See) -> None:
    """Nothing was refused, so that one of them finds no entry."""
    seen = see("follow_the_page")
    assert seen["num"] >= 6
    assert seen["failed"] == []
    assert [line for line in seen["said_nothing"] if "reload_refused" not in line] == []
    assert is_running(seen["unit"])


def test_a_stop_finishes_what_runs_and_takes_nothing_new(see: See) -> None:
    """New requests got 503, or the step would not have ended. And it lasted for longer than systemd
    would wait, were it not told how long it may take.
    """
    seen = see("stop")
    assert seen["lasted_s"] > 2, "what ran was too short to show anything"
    assert seen["finish_reason"] == "length"
    assert seen["status"] == 0
    unit = seen["unit"]
    assert (unit["ActiveState"], unit["Result"]) == ("inactive", "success")
    assert unit["ExecMainStatus"] == "0"
    assert seen["drain"][-1]["ADAPTIVE_KV_RUNNING"] == "1"


def test_a_bad_configuration_stays_down_and_says_why(see: See) -> None:
    """Exit status 78 is not started again."""
    seen = see("misconfigure")
    unit = seen["unit"]
    assert (unit["ActiveState"], unit["ExecMainStatus"]) == ("failed", "78")
    assert unit["NRestarts"] == "0"
    assert "  memory.flour: unknown key; did you mean memory.floor?" in seen["output"]


@pytest.mark.parametrize("name", ["one", "two"])
def test_instances_run_side_by_side(see: See, name: str) -> None:
    seen = see("instances")
    assert is_running(seen[name]["unit"])
    assert seen[name]["node"] == f"edge-{name}"
    assert seen[name]["has_state"]


def test_removing_stops_everything_and_a_purge_leaves_nothing(see: See) -> None:
    seen = see("remove")
    assert (seen["removed"], seen["purged"]) == (0, 0)
    assert seen["left"] == [None, "inactive"]
    assert len(seen["kept"]) == 2
    assert seen["still_there"] == []
