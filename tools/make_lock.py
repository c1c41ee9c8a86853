"""Writes packaging/requirements.lock: every package that is installed on a box, by its hash.

All that pyproject.toml asks for and what that needs in turn, but for torch: a box has the build
that fits it. Run it with `make lock`, after the dependencies have changed or to get newer ones.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "packaging" / "requirements.lock"
LEFT_TO_THE_BOX = "torch"


def requirements() -> list[str]:
    """What pyproject.toml asks for, without what is left to the box."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found: list[str] = project["dependencies"]
    return [text for text in found if Requirement(text).name != LEFT_TO_THE_BOX]


def main() -> None:
    """Resolve for every Python that is supported, and for every machine."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "-o", str(LOCK), "--quiet"]
    command += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate"]
    subprocess.run(
        [*command, "--upgrade", "--custom-compile-command", "make lock"],
        input="\n".join(requirements()),
        text=True,
        check=True,
    )


if __name__ == "__main__":
    main()
