"""The import direction holds, and what a policy author loads is light."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"numba", "torch", "transformers", "triton"}


def loaded_by(script: str) -> set[str]:
    """The heavy top-level packages that a fresh interpreter holds after `script`."""
    report = "\nimport json, sys\nprint(json.dumps([m for m in sys.modules if '.' not in m]))"
    done = subprocess.run(
        [sys.executable, "-c", script + report], capture_output=True, text=True, check=True
    )
    return HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module",
    [
        "adaptive_kv",
        "adaptive_kv.cli.main",
        "adaptive_kv.config",
        "adaptive_kv.controller",
        "adaptive_kv.documents",
        "adaptive_kv.engine.mailbox",
        "adaptive_kv.events",
        "adaptive_kv.loader",
        "adaptive_kv.log",
        "adaptive_kv.policy",
        "adaptive_kv.testing",
        "adaptive_kv.loader.child",
        "adaptive_kv_policies.fair",
        "adaptive_kv_policies.fixed",
        "adaptive_kv_policies.forecast",
        "adaptive_kv_policies.ladder",
        "adaptive_kv_policies.latency_guard",
    ],
)
def test_loads_no_tensor_library(module: str) -> None:
    assert loaded_by(f"import {module}") == set()


def test_help_loads_no_tensor_library() -> None:
    script = (
        "import contextlib, sys\n"
        "from adaptive_kv.cli.main import main\n"
        "sys.argv = ['adaptive-kv', '--help']\n"
        "with contextlib.suppress(SystemExit): main()"
    )
    assert loaded_by(script) == set()


def test_the_import_direction_holds() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout
