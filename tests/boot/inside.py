"""What the test does as root on the booted box, and what it sees: /opt/out/seen.json.

Every step is recorded as it ends, so that the last one shows where it went wrong.
"""

import json
import os
import re
import shutil
import subprocess
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from boot.box import (
    ASK,
    TOKEN,
    UNIT,
    answers,
    http,
    is_up,
    journal,
    run,
    show,
    stream,
    there,
    until,
)
from boot.freezing import Freezer, busiest_thread

OUT, ETC = Path("/opt/out"), Path("/etc/adaptive-kv")
PASSWORD = "hush"
PYTHON = "/usr/lib/adaptive-kv/venv/bin/python"
MOSQUITTO = "listener 1883 127.0.0.1\npassword_file /run/passwd\nallow_anonymous false\nuser root\n"
DROP_IN = """\
[Service]
WatchdogSec=4
RestartSec=1
TimeoutStopSec=2
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
    (package,) = Path("/opt/given").glob("*.deb")
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
    worker = Freezer(busiest_thread(pid))
    worker.stop()
    while not (answered := answers("/healthz")):  # it was stopped while it held the interpreter
        worker.go_on()
        worker.stop()
    worker.wait_for_the_end()
    until(lambda: is_up(pid))
    return {
        "before": before,
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
    page = Path("/opt/given/operations.md").read_text()
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
    with stream(2000) as chunks:
        next(chunks)
        started_s = time.monotonic()
        with subprocess.Popen(["systemctl", "stop", UNIT]) as stopping:
            until(lambda: show()["ActiveState"] == "deactivating")
            until(lambda: http("/v1/completions", ASK).status == 503)
            last = [chunk for chunk in chunks if chunk["choices"]][-1]
            status = stopping.wait(90)
        lasted_s = time.monotonic() - started_s
    return {
        "finish_reason": last["choices"][0]["finish_reason"],
        "status": status,
        "lasted_s": lasted_s,
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
