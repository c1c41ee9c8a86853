"""The units and what belongs to them, as systemd's own tools read them."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from adaptive_kv.config import load_settings

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNITS = ("adaptive-kv.service", "adaptive-kv@.service")
DROP_INS = (None, "nvidia.conf", "jetson.conf")


@pytest.fixture(autouse=True, scope="module")
def _tools() -> None:
    for tool in ("systemd-analyze", "systemd-sysusers", "systemd-tmpfiles"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


@pytest.fixture(params=DROP_INS, ids=str)
def drop_in(request: pytest.FixtureRequest) -> str | None:
    found: str | None = request.param
    return found


def installed(folder: Path, unit: str, drop_in: str | None) -> Path:
    """A unit beside its drop-in, as the administrator puts it there."""
    shutil.copy(SYSTEMD / unit, folder)
    if drop_in is not None:
        (folder / f"{unit}.d").mkdir()
        shutil.copy(SYSTEMD / "drop-ins" / drop_in, folder / f"{unit}.d")
    return folder / unit


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_has_nothing_to_say_about_them(
    tmp_path: Path, unit: str, drop_in: str | None
) -> None:
    """It exits with 0 for keys that it does not know, but not in silence."""
    command = ["systemd-analyze", "verify", str(installed(tmp_path, unit, drop_in))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("unit", UNITS)
def test_little_is_exposed(tmp_path: Path, unit: str, drop_in: str | None) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager"]
    done = subprocess.run(
        [*command, str(installed(tmp_path, unit, drop_in))],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) <= 2.0


def test_an_instance_differs_in_nothing_but_its_name() -> None:
    plain, instance = ((SYSTEMD / unit).read_text().splitlines() for unit in UNITS)
    lines = [line for line in instance if not line.startswith("#")]
    bare = [re.sub(r"/%i(?=\b|/)|\s\(%i\)|--config \S+", "", line).rstrip() for line in lines]
    assert bare == [line for line in plain if not line.startswith("#")]


def test_a_stop_waits_for_longer_than_a_drain_and_a_start_for_longer_than_a_ping() -> None:
    unit = (SYSTEMD / UNITS[0]).read_text()
    drain_s = load_settings(SYSTEMD / "adaptive-kv.toml").server.drain_timeout_s
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert stop is not None
    assert float(stop[1]) > drain_s + 15  # connections close, and the engine stops


def test_the_example_configuration_is_accepted_with_all_that_it_leaves_out(tmp_path: Path) -> None:
    """Also where its comments are taken at their word."""
    text = (SYSTEMD / "adaptive-kv.toml").read_text()
    assert load_settings(SYSTEMD / "adaptive-kv.toml").server.port == 8787
    everything = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)
    keys = tomllib.loads(everything)
    assert {"path"} == keys["model"].keys()
    assert {"url", "node", "username"} == keys["mqtt"].keys()
    (tmp_path / "mine.toml").write_text(everything)
    assert load_settings(tmp_path / "mine.toml").memory.budget == 4 * 2**30


def test_user_and_folders_are_understood(tmp_path: Path) -> None:
    """By systemd's own tools, in a folder that stands for the root."""
    (tmp_path / "etc").mkdir()
    tools = {"systemd-sysusers": "sysusers.d", "systemd-tmpfiles": "tmpfiles.d"}
    for tool, folder in tools.items():
        file = SYSTEMD / folder / "adaptive-kv.conf"
        create = ["--create"] if tool == "systemd-tmpfiles" else []
        command = [tool, *create, f"--root={tmp_path}", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "adaptive-kv:x:" in (tmp_path / "etc/passwd").read_text()
    groups = (tmp_path / "etc/group").read_text()
    for name in ("video", "render"):
        assert re.search(rf"^{name}:x:\d+:adaptive-kv$", groups, re.MULTILINE)
    credentials = tmp_path / "etc/adaptive-kv/credentials"
    assert credentials.stat().st_mode & 0o777 == 0o700
