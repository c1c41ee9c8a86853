"""The installed command, run as its users run it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.command import COMMAND, clean_environment

Run = Callable[..., subprocess.CompletedProcess[str]]


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
