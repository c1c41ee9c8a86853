"""The installed command, run as its users run it."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("adaptive-kv")
Run = Callable[..., subprocess.CompletedProcess[str]]


def clean_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without what configures the command, in a home of its own."""
    ours = {name: value for name, value in os.environ.items() if "ADAPTIVE_KV" not in name}
    return ours | {"HOME": str(home), "COLUMNS": "100", "NO_COLOR": "1"} | dict(extra or {})


@pytest.fixture
def adaptive_kv(tmp_path: Path) -> Run:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=tmp_path,
            env=clean_environment(tmp_path, environment),
        )

    return run
