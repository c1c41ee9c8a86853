"""What systemd says about our units, judged. The texts are what systemd 252 answers."""

from pathlib import Path

import pytest

from adaptive_kv.cli.unit import check_units, judge
from adaptive_kv.errors import ConfigError

WELL = {
    "Id": "adaptive-kv.service",
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "UnitFileState": "enabled",
    "Result": "success",
    "NRestarts": "0",
}


def shown(*units: dict[str, str]) -> str:
    blocks = ("\n".join(f"{key}={value}" for key, value in unit.items()) for unit in units)
    return "\n\n".join(blocks) + "\n"


def test_a_box_without_systemd_has_none(tmp_path: Path) -> None:
    assert check_units(tmp_path / "absent") == "none: systemd does not run this box"


def test_a_unit_that_runs_and_starts_with_the_box_is_well() -> None:
    assert judge(shown(WELL)) == "adaptive-kv.service active"


def test_a_unit_that_is_not_installed_is_none() -> None:
    absent = WELL | {"LoadState": "not-found", "ActiveState": "inactive", "UnitFileState": ""}
    assert judge(shown(absent)) == "none installed"


def test_several_models_on_one_box_are_each_judged() -> None:
    small = WELL | {"Id": "adaptive-kv@small.service", "NRestarts": "2"}
    absent = WELL | {"LoadState": "not-found"}
    assert judge(shown(absent, small)) == "adaptive-kv@small.service active, restarted 2 times"
    with pytest.raises(ConfigError, match=r"adaptive-kv@small\.service has failed"):
        judge(shown(WELL, small | {"ActiveState": "failed"}))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ActiveState": "failed", "Result": "watchdog"}, r"has failed \(watchdog\): journalctl"),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, "ends and is restarted"),
        ({"UnitFileState": "disabled"}, "does not start with the box: systemctl enable"),
        ({"LoadState": "bad-setting"}, "is bad-setting: systemd-analyze verify"),
        ({"LoadState": "masked", "UnitFileState": "masked"}, "is masked"),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(changes: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        judge(shown(WELL | changes))
