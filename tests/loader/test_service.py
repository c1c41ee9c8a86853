"""The real service under a policy that does nothing but harm."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli.test_serve import serving
from loader.processes import children, is_running

PATIENCE_S = 60.0
HARM = {
    "spins": "while True: pass",
    "eats_memory": "while True: hoard.append(b'x' * 2**24)",
    "exits": "os._exit(1)",
}


@pytest.mark.parametrize("kind", HARM)
def test_requests_are_answered_and_the_ladder_takes_over(tmp_path: Path, kind: str) -> None:
    """And nothing is left of it, neither when it was replaced nor when the service has ended."""
    policy = tmp_path / f"{kind}.py"
    policy.write_text(f"import os\nhoard = []\ndef decide(now):\n    {HARM[kind]}\n")
    with serving(tmp_path, "--policy", f"{policy}:decide") as served:
        until_s = time.monotonic() + PATIENCE_S
        status: dict[str, Any] = {}
        num_answered = 0
        while status.get("status") != "fallback":
            assert time.monotonic() < until_s, status
            body = {"prompt": "Once", "max_tokens": 16, "ignore_eos": True}
            answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=PATIENCE_S)
            assert answer.status_code == 200, answer.text
            num_answered += answer.json()["usage"]["completion_tokens"] == 16
            status = httpx.get(f"{served.url}/status").json()["policy"]
        assert num_answered >= 1
        assert (status["name"], status["faults"] >= 5) == ("ladder", True)
        while children(served.process.pid):
            assert time.monotonic() < until_s
            time.sleep(0.01)


def test_a_service_that_ends_takes_its_policy_along(tmp_path: Path) -> None:
    policy = tmp_path / "fine.py"
    policy.write_text("def decide(now):\n    return None\n")
    config = tmp_path / "patient.toml"
    config.write_text("[policy]\ndeadline_s = 60\n")
    for ending in (signal.SIGTERM, signal.SIGKILL):
        with serving(tmp_path, "--config", str(config), "--policy", str(policy)) as served:
            status = httpx.get(f"{served.url}/status").json()["policy"]
            assert (status["name"], status["status"]) == ("fine.py", "ok")
            (child,) = children(served.process.pid)
            os.kill(served.process.pid, ending)
            served.process.wait(PATIENCE_S)
            until_s = time.monotonic() + PATIENCE_S
            while is_running(child):
                assert time.monotonic() < until_s
                time.sleep(0.01)
        (tmp_path / "notify").unlink()
