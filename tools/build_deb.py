"""Builds the Debian package from a wheel, the lock and the units, with nothing but dpkg-deb.

    python tools/build_deb.py [FOLDER]

prints the path of the package, in FOLDER (dist).
"""

import email.utils
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEBIAN, SYSTEMD = ROOT / "packaging" / "debian", ROOT / "systemd"
DOC = "usr/share/doc/adaptive-kv"
CONFIG = "etc/adaptive-kv/adaptive-kv.toml"
FILES = {
    "packaging/requirements.lock": "usr/lib/adaptive-kv/requirements.lock",
    "systemd/adaptive-kv.service": "usr/lib/systemd/system/adaptive-kv.service",
    "systemd/adaptive-kv@.service": "usr/lib/systemd/system/adaptive-kv@.service",
    "systemd/sysusers.d/adaptive-kv.conf": "usr/lib/sysusers.d/adaptive-kv.conf",
    "systemd/tmpfiles.d/adaptive-kv.conf": "usr/lib/tmpfiles.d/adaptive-kv.conf",
    "systemd/adaptive-kv.toml": CONFIG,
    "systemd/drop-ins/nvidia.conf": f"{DOC}/examples/nvidia.conf",
    "systemd/drop-ins/jetson.conf": f"{DOC}/examples/jetson.conf",
    "systemd/mosquitto.acl": f"{DOC}/examples/mosquitto.acl",
    "docs/operations.md": f"{DOC}/operations.md",
    "packaging/debian/copyright": f"{DOC}/copyright",
    "packaging/debian/overrides": "usr/share/lintian/overrides/adaptive-kv",
}
SCRIPTS = ("postinst", "prerm", "postrm")
COMMAND, ENVIRONMENT = "usr/bin/adaptive-kv", "../lib/adaptive-kv/venv/bin/adaptive-kv"


def version() -> str:
    """The package's, as pyproject.toml has it."""
    found: str = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    return found


def build(folder: Path) -> Path:
    """Build the package into `folder`; the same commit gives the same package."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(_committed_s()))
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        tree.chmod(0o755)
        _lay_files(tree)
        _lay_control(tree)
        package = folder / f"adaptive-kv_{version()}_all.deb"
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(tree), str(package)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return package


def _lay_files(tree: Path) -> None:
    for source, target in FILES.items():
        _lay(ROOT / source, tree / target)
    _build_wheel(tree / "usr/lib/adaptive-kv")
    for name, text in {
        "changelog.gz": _changelog(),
        "CHANGELOG.md.gz": (ROOT / "CHANGELOG.md").read_text("utf-8"),
    }.items():
        (tree / DOC / name).write_bytes(gzip.compress(text.encode(), 9, mtime=0))
        (tree / DOC / name).chmod(0o644)
    (tree / COMMAND).parent.mkdir(parents=True)
    (tree / COMMAND).symlink_to(ENVIRONMENT)


def _lay_control(tree: Path) -> None:
    size_bytes = sum((tree / name).stat().st_size for name in _files_in(tree))
    control = (DEBIAN / "control").read_text("utf-8").replace("@VERSION@", version())
    for name in SCRIPTS:
        _lay(DEBIAN / name, tree / "DEBIAN" / name, mode=0o755)
    (tree / "DEBIAN/control").write_text(control.replace("@SIZE@", str(-(-size_bytes // 1024))))
    (tree / "DEBIAN/conffiles").write_text(f"/{CONFIG}\n")
    sums = [f"{_md5(tree / name)}  {name}\n" for name in _files_in(tree) if name != CONFIG]
    (tree / "DEBIAN/md5sums").write_text("".join(sums))


def _changelog() -> str:
    """As Debian's tools read one; what users notice is in the project's own."""
    control = (DEBIAN / "control").read_text("utf-8")
    (maintainer,) = re.findall(r"^Maintainer: (.*)$", control, re.MULTILINE)
    date = email.utils.formatdate(int(os.environ["SOURCE_DATE_EPOCH"]))
    lines = (
        f"adaptive-kv ({version()}) stable; urgency=medium",
        f"  * See /{DOC}/CHANGELOG.md.gz.",
        f" -- {maintainer}  {date}",
    )
    return "\n\n".join(lines) + "\n"


def _committed_s() -> int:
    """When the sources were last changed; now, where git does not know."""
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else int(time.time())


def _files_in(tree: Path) -> list[str]:
    files = [file for file in tree.rglob("*") if file.is_file() and not file.is_symlink()]
    return sorted(str(file.relative_to(tree)) for file in files if "DEBIAN" not in file.parts)


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def _lay(source: Path, target: Path, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def _build_wheel(folder: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for wheel in folder.glob("*.whl"):
        wheel.chmod(0o644)


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "dist"))
