"""Boots a real systemd on an overlay of this machine's files, for one script, and ends it.

Nothing outside the folder that is handed over changes. It has no network but a loopback of its own.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement
from terminal import Terminal

UNIT = """\
[Unit]
Description=What the test does on this box
DefaultDependencies=no
After=basic.target dbus.service
Wants=dbus.socket
[Service]
Type=oneshot
Environment=PYTHONPATH=/opt/tests PYTHONDONTWRITEBYTECODE=1
ExecStart=/bin/sh -c "/usr/bin/python3 -m {script} >/opt/out/log 2>&1; systemctl exit 0"
TimeoutStartSec={patience_s}
FailureAction=exit
"""
ROOT_ELSEWHERE = 'mount --bind / "$0" && exec "$@"'
"""nspawn takes no `/`. Nobody but itself sees the mount, so that nobody can delete through it."""
TESTS = Path(__file__).parents[1]
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
DIST_PACKAGES = f"/usr/local/lib/{PYTHON}/dist-packages"


def why_no_boot() -> str | None:
    """Why this machine cannot boot one; None where it can."""
    if os.geteuid() != 0:
        return "only root can boot a systemd"
    for tool in ("systemd-nspawn", "unshare", "dbus-daemon", "dpkg", "mosquitto"):
        if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            return f"{tool} is not installed"
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        return "this process may not mount anything"
    if Path("/usr/bin/python3").resolve().name != PYTHON:
        return f"torch here is built for {PYTHON}, which is not the distribution's python3"
    return None


def boot(script: str, given: Mapping[Path, str], out: Path, *, patience_s: int) -> str:
    """Run `script`, a module of these tests, as root once it is up; what its console showed.

    `given` are files and folders with the place where they are found; `out` is /opt/out.
    """
    unit = out / "inside.service"
    unit.write_text(UNIT.format(script=script, patience_s=patience_s))
    root = out / "root"
    root.mkdir()
    binds = {TESTS: "/opt/tests", unit: "/etc/systemd/system/inside.service", **given}
    command = [
        *("unshare", "--mount", "sh", "-c", ROOT_ELSEWHERE, str(root)),
        *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network"),
        *("--volatile=overlay", "--link-journal=no", f"--machine=adaptive-kv-{os.getpid()}"),
        *(f"--directory={root}", f"--bind={out}:/opt/out"),
        *(f"--bind-ro={source}:{target}" for source, target in binds.items()),
        *("--boot", "systemd.unit=inside.service", "systemd.show_status=0"),
    ]
    with Terminal() as console:  # without one nothing is ever shown
        end, limit_s = console.end, patience_s + 60
        subprocess.run(command, stdin=end, stdout=end, stderr=end, timeout=limit_s, check=False)
    return console.text


def torch_of_the_box(folder: Path) -> dict[Path, str]:
    """What is bound where, for torch and what it needs to be this box's own."""
    stage = folder / "dist-packages"
    stage.mkdir()
    found = {stage: DIST_PACKAGES}
    for name in _needed_by("torch"):
        for path in _tops(name):
            place = stage / path.name
            place.mkdir() if path.is_dir() else place.touch()
            found[path] = f"{DIST_PACKAGES}/{path.name}"
    return found


def _needed_by(name: str) -> set[str]:
    found, new = set[str](), {name}
    while new:
        found |= new
        texts = [text for one in new for text in importlib.metadata.requires(one) or []]
        asked = map(Requirement, texts)
        new = {ask.name for ask in asked if ask.marker is None or ask.marker.evaluate()} - found
    return found


def _tops(name: str) -> set[Path]:
    """The folders and files of an installed distribution, as they lie among the others."""
    distribution = importlib.metadata.distribution(name)
    files = distribution.files or []
    tops = {file.parts[0] for file in files if file.parts[0] != ".."}
    return {Path(str(distribution.locate_file(top))) for top in tops - {"__pycache__"}}
