"""Whether the systemd unit of this service is installed, starts with the box, and is well."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from adaptive_kv.errors import ConfigError

_BOOTED = Path("/run/systemd/system")
"""Is there where systemd is the init; see sd_booted(3)."""
_UNITS = ("adaptive-kv.service", "adaptive-kv@*.service")
_PROPERTIES = "Id LoadState ActiveState SubState UnitFileState Result NRestarts".split()
_TIMEOUT_S = 10.0


def check_units(booted: Path = _BOOTED) -> str:
    """What is well, in words; `none` where there is no systemd or no unit.

    Raises `ConfigError` that says what is wrong and what to do.
    """
    command = shutil.which("systemctl")
    if command is None or not booted.exists():
        return "none: systemd does not run this box"
    try:
        shown = subprocess.run(  # noqa: S603 - no input from anybody
            [command, "show", f"--property={','.join(_PROPERTIES)}", *_UNITS],
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.SubprocessError as error:
        raise ConfigError(f"systemctl does not answer: {error}") from None
    return judge(shown.stdout)


def judge(shown: str) -> str:
    """What `systemctl show` says about our units, judged. Raises `ConfigError`."""
    units = [_properties(block) for block in shown.strip().split("\n\n")]
    units = [unit for unit in units if unit.get("LoadState", "not-found") != "not-found"]
    faults = [fault for unit in units for fault in _faults(unit)]
    if faults:
        raise ConfigError("; ".join(faults))
    return ", ".join(map(_told, units)) or "none installed"


def _properties(block: str) -> Mapping[str, str]:
    pairs = (line.partition("=") for line in block.splitlines())
    return {key: value for key, _, value in pairs}


def _told(unit: Mapping[str, str]) -> str:
    told = f"{unit['Id']} {unit['ActiveState']}"
    return f"{told}, restarted {unit['NRestarts']} times" if unit["NRestarts"] != "0" else told


def _faults(unit: Mapping[str, str]) -> list[str]:
    name, found = unit["Id"], []
    if unit["LoadState"] != "loaded":
        found.append(f"{name} is {unit['LoadState']}: systemd-analyze verify {name}")
    elif unit["ActiveState"] == "failed":
        found.append(f"{name} has failed ({unit['Result']}): journalctl -u {name}")
    elif unit["SubState"] == "auto-restart":
        found.append(f"{name} ends and is restarted ({unit['Result']}): journalctl -u {name}")
    if unit["UnitFileState"] == "disabled":
        found.append(f"{name} does not start with the box: systemctl enable {name}")
    return found
