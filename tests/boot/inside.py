"""What the test does as root on the booted box, and what it sees: /opt/out/seen.json.

Standard library alone. Every step is recorded as it ends, so that the last one shows where it went
wrong.
"""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OUT, ETC = Path("/opt/out"), Path("/etc/adaptive-kv")
URL = "http://127.0.0.1:8787"
TOKEN, PASSWORD = "letmein", "hush"
PYTHON = "/usr/lib/adaptive-kv/venv/bin/python"
UNIT = "adaptive-kv.service"
PTRACE_CONT, PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 7, 0x4206, 0x4207, 0x40000000
ASK = {"prompt": "def main", "temperature": 0, "ignore_eos": True, "stream": True}
MOSQUITTO = "listener 1883 127.0.0.1\npassword_file /run/passwd\nallow_anonymous false\nuser root\n"
DROP_IN = """\
[Service]
WatchdogSec=4
RestartSec=1
Environment=OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
"""
CONFIG = """\
[server]
drain_timeout_s = 60
[cache]
ladder = ["full", "int4"]
[mqtt]
url = "mqtt://127.0.0.1:1883"
username = "edge"
node = "edge"
"""
AVAILABILITY = """
import sys, paho.mqtt.subscribe
auth = {"username": "edge", "password": sys.argv[1]}
topic = "adaptive-kv/v1/edge/availability"
print(paho.mqtt.subscribe.simple(topic, hostname="127.0.0.1", auth=auth).payload.decode())
"""
TWO_ENTRIES = """
import structlog
from adaptive_kv.log import configure_logging
from adaptive_kv.settings import LogSettings
configure_logging(LogSettings())
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger().exception("broken", detail="first line\\nsecond line")
structlog.get_logger().info("large", text="x" * 10**6)
"""


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


# What is done, in this order


def install() -> dict[str, Any]:
    """The Debian package, on a box with torch whose packages lie in a folder."""
    Path("/usr/sbin/policy-rc.d").unlink(missing_ok=True)
    texts: dict[str, None] = {}
    is_done = threading.Event()

    def look() -> None:
        while not is_done.wait(0.1):
            texts[show()["StatusText"]] = None

    looking = threading.Thread(target=look)
    looking.start()
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/opt/wheels", "PIP_CONFIG_FILE": "/dev/null"}
    (package,) = Path("/opt/test").glob("*.deb")
    done = run("dpkg", "--install", str(package), env=os.environ | pip)
    is_done.set()
    looking.join()
    return {
        "status": done.returncode,
        "output": done.stdout + done.stderr,
        "unit": show(),
        "texts": list(texts),
        "pip_check": run(PYTHON, "-m", "pip", "check").stdout,
        "policies": run("adaptive-kv", "policy", "list").stdout,
        "ready": http("/readyz").status,
        "owner": Path("/var/lib/adaptive-kv").owner(),
    }


def configure() -> dict[str, Any]:
    """Credentials, a broker that asks for a password, and a watchdog that is soon impatient."""
    (ETC / "adaptive-kv.toml").write_text(CONFIG)
    (ETC / "credentials/server__token").write_text(TOKEN + "\n")
    (ETC / "credentials/mqtt__password").write_text(PASSWORD + "\n")
    run("mosquitto_passwd", "-b", "-c", "/run/passwd", "edge", PASSWORD)
    Path("/run/mosquitto.conf").write_text(MOSQUITTO)
    run("mosquitto", "-d", "-c", "/run/mosquitto.conf")
    drop_ins = Path("/etc/systemd/system/adaptive-kv.service.d")
    drop_ins.mkdir(parents=True)
    (drop_ins / "test.conf").write_text(DROP_IN)
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", UNIT)
    heard = run(PYTHON, "-c", AVAILABILITY, PASSWORD, timeout=30)
    environment = Path(f"/proc/{show()['MainPID']}/environ").read_text()
    return {
        "with_token": http("/readyz").status,
        "with_another": http("/readyz", token="guess").status,
        "availability": heard.stdout.strip(),
        "in_environment": TOKEN in environment or PASSWORD in environment,
        "unit": show(),
    }


def switch() -> dict[str, Any]:
    """A mode is pinned while a sequence runs."""
    with stream(300, prompt="def main " * 200) as chunks:
        next(chunks)
        http("/admin/mode", {"mode": "int4"}, method="PUT")
        for _ in chunks:
            pass
    http("/admin/mode", method="DELETE")
    return {"entries": until(lambda: journal("ADAPTIVE_KV_TO=int4"))}


def long_entries() -> dict[str, Any]:
    """A traceback, and more than a datagram holds."""
    run("systemd-run", "--wait", "--quiet", PYTHON, "-c", TWO_ENTRIES)
    return {
        "broken": until(lambda: journal("ADAPTIVE_KV_EVENT=broken")),
        "large": len(until(lambda: journal("ADAPTIVE_KV_EVENT=large"))[0]["ADAPTIVE_KV_TEXT"]),
    }


def reload() -> dict[str, Any]:
    """A changed configuration, by `systemctl reload`."""
    (ETC / "adaptive-kv.toml").write_text(CONFIG.replace('"int4"', '"int8", "int4"'))
    done = run("systemctl", "reload", UNIT)
    return {
        "status": done.returncode,
        "entries": until(lambda: journal("ADAPTIVE_KV_EVENT=reloaded")),
        "unit": show(),
    }


def freeze() -> dict[str, Any]:
    """The worker's thread alone is stopped, by ptrace; all others run on.

    Before that it was idle for longer than the watchdog waits.
    """
    time.sleep(5)
    before = show()
    pid = before["MainPID"]
    thread = busiest_thread(pid)
    ptrace(PTRACE_SEIZE, thread)
    answered = False
    while not answered:  # else it was stopped while it held the interpreter
        stop_thread(thread)
        answered = answers("/healthz")
        if not answered:
            go_on(thread)
    state = Path(f"/proc/{pid}/task/{thread}/stat").read_text().rsplit(")", 1)[1].split()[0]
    os.waitpid(thread, WALL)  # until it is dead
    until(lambda: is_up(pid))
    return {
        "before": before,
        "state": state,
        "answered": answered,
        "unit": show(),
        "manager": [entry["MESSAGE"] for entry in journal("UNIT=" + UNIT)],
        "output": [entry["MESSAGE"] for entry in journal("_PID=" + pid)],
        "serves": http("/readyz").status,
    }


def kill() -> dict[str, Any]:
    """SIGKILL to all of it."""
    before = show()
    run("systemctl", "kill", "--signal=KILL", UNIT)
    until(lambda: is_up(before["MainPID"]))
    return {"before": before, "unit": show(), "serves": http("/readyz").status}


def follow_the_page() -> dict[str, Any]:
    """The commands that docs/operations.md has for reading logs and for reloading."""
    page = Path("/opt/test/operations.md").read_text()
    sections = [part for part in page.split("\n## ") if part.startswith(("Read", "Change"))]
    blocks = re.findall(r"```sh\n(.*?)```", "".join(sections), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    done = {command: run("sh", "-c", command) for command in commands}
    return {
        "failed": [command for command, one in done.items() if one.returncode or one.stderr],
        "said_nothing": [command for command, one in done.items() if "No entries" in one.stdout],
        "num": len(commands),
        "unit": show(),
    }


def stop() -> dict[str, Any]:
    """`systemctl stop` while an answer is streamed, and a new request meanwhile."""
    with stream(1000) as chunks:
        next(chunks)
        with subprocess.Popen(["systemctl", "stop", UNIT]) as stopping:
            until(lambda: show()["ActiveState"] == "deactivating")
            refused = until(lambda: http("/v1/completions", ASK).status != 200) and http(
                "/v1/completions", ASK
            )
            last = [chunk for chunk in chunks if chunk["choices"]][-1]
            status = stopping.wait(90)
    return {
        "refused": refused.status,
        "finish_reason": last["choices"][0]["finish_reason"],
        "status": status,
        "unit": show(),
        "drain": journal("ADAPTIVE_KV_EVENT=drain"),
    }


def misconfigure() -> dict[str, Any]:
    """A key that does not exist."""
    (ETC / "adaptive-kv.toml").write_text("[memory]\nflour = 1\n")
    run("systemctl", "start", UNIT)
    until(lambda: show()["ActiveState"] == "failed")
    time.sleep(3)  # thrice RestartSec
    return {"unit": show(), "output": [one["MESSAGE"] for one in journal("-u", UNIT, "-n", "20")]}


def instances() -> dict[str, Any]:
    """Two models at once, on two ports."""
    names = {"one": 8801, "two": 8802}
    for name, port in names.items():
        text = f'[server]\nport = {port}\n[mqtt]\nnode = "edge-{name}"\n'
        (ETC / f"{name}.toml").write_text(text)
    run("systemctl", "start", *(f"adaptive-kv@{name}" for name in names))
    return {
        name: {
            "unit": show(f"adaptive-kv@{name}"),
            "node": json.load(http("/status", url=f"http://127.0.0.1:{port}"))["node"],
            "has_state": Path(f"/var/lib/adaptive-kv/{name}").is_dir(),
        }
        for name, port in names.items()
    }


def remove() -> dict[str, Any]:
    """The package, and then all that it left."""
    removed = run("dpkg", "--remove", "adaptive-kv")
    kept = there("etc/adaptive-kv/adaptive-kv.toml", "var/lib/adaptive-kv")
    left = shutil.which("adaptive-kv"), show("adaptive-kv@one")["ActiveState"]
    purged = run("dpkg", "--purge", "adaptive-kv")
    folders = [f"{one}/adaptive-kv" for one in ("etc", "var/lib", "usr/lib", "var/cache")]
    return {
        "removed": removed.returncode,
        "kept": kept,
        "left": left,
        "purged": purged.returncode,
        "still_there": there(*folders),
    }


def there(*paths: str) -> list[str]:
    return [path for path in paths if Path("/", path).exists()]


# Stopping one thread


def busiest_thread(pid: str) -> int:
    """The worker's: the one that computes while an answer is made, and is not the first."""
    before = cpu_times(pid)
    with stream(200) as chunks:
        for _ in chunks:
            pass
    after = cpu_times(pid)
    del after[int(pid)]
    spent = {thread: after[thread] - before.get(thread, 0) for thread in after}
    return max(spent, key=lambda thread: spent[thread])


def cpu_times(pid: str) -> dict[int, int]:
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        found[int(task.name)] = int(fields[11]) + int(fields[12])
    return found


def ptrace(request: int, thread: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(request, thread, None, None) == -1:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} {thread}")


def stop_thread(thread: int) -> None:
    ptrace(PTRACE_INTERRUPT, thread)
    os.waitpid(thread, WALL)


def go_on(thread: int) -> None:
    ptrace(PTRACE_CONT, thread)
    time.sleep(0.2)


def answers(path: str) -> bool:
    try:
        return bool(urllib.request.urlopen(URL + path, timeout=0.5).status == 200)
    except OSError:
        return False


STEPS = (
    install,
    configure,
    switch,
    long_entries,
    reload,
    freeze,
    kill,
    follow_the_page,
    stop,
    misconfigure,
    instances,
    remove,
)


def main() -> None:
    until(lambda: run("busctl", "--quiet", "list").returncode == 0)
    seen: dict[str, Any] = {}
    for step in STEPS:
        started_s = time.monotonic()
        try:
            seen[step.__name__] = step()
        except Exception:  # noqa: BLE001 - the next steps may tell more
            seen[step.__name__] = {"error": traceback.format_exc()}
        seen[step.__name__]["took_s"] = round(time.monotonic() - started_s, 1)
        (OUT / "seen.json").write_text(json.dumps(seen, indent=1, default=str))
    run("journalctl", "--no-pager", "-u", "adaptive-kv*")
    (OUT / "journal").write_text(
        subprocess.run(["journalctl"], capture_output=True, text=True, check=False).stdout
    )


main()
