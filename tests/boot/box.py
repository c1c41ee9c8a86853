"""The booted box as root on it sees it. Standard library alone, as all that runs there."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

URL, TOKEN = "http://127.0.0.1:8787", "letmein"
UNIT = "adaptive-kv.service"
ASK = {"prompt": "def main", "temperature": 0, "ignore_eos": True, "stream": True}


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    sys.stdout.write(f"{command} {done.returncode}\n{done.stdout}{done.stderr}\n")
    return done


def show(unit: str = UNIT) -> dict[str, str]:
    """What systemd says of a unit."""
    keys = "ActiveState,SubState,MainPID,NRestarts,Result,ExecMainStatus,StatusText"
    done = subprocess.run(
        ["systemctl", "show", unit, "-p", keys], capture_output=True, text=True, check=True
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def journal(*matches: str) -> list[dict[str, Any]]:
    """Entries of the journal, as `journalctl` finds them."""
    subprocess.run(["journalctl", "--sync"], check=True)
    command = ["journalctl", "-o", "json", "--all", *matches]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def until(claim: Callable[[], Any], within_s: float = 90.0) -> Any:
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if found := claim():
            return found
        time.sleep(0.1)
    raise TimeoutError(claim)


def http(
    path: str, body: Any = None, *, method: str | None = None, url: str = URL, token: str = TOKEN
) -> Any:
    """A response, whatever its status."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, headers, method=method)
    try:
        return urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        return error


@contextmanager
def stream(max_tokens: int, **parameters: Any) -> Iterator[Iterator[dict[str, Any]]]:
    """The chunks of an answer."""
    with http("/v1/completions", ASK | {"max_tokens": max_tokens} | parameters) as response:
        lines = (line.decode().removeprefix("data: ") for line in response)
        yield (json.loads(line) for line in lines if line.startswith("{"))


def is_up(pid: str = "0") -> dict[str, str] | None:
    """How it is shown, once it runs as another process than `pid`."""
    now = show()
    return now if now["ActiveState"] == "active" and now["MainPID"] != pid else None


def there(*paths: str) -> list[str]:
    return [path for path in paths if Path("/", path).exists()]


def answers(path: str) -> bool:
    """Whether HTTP does, at once."""
    try:
        return bool(urllib.request.urlopen(URL + path, timeout=0.5).status == 200)
    except OSError:
        return False
