"""Somebody else's policy, however bad, in a real child process under the real controller."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from loader.processes import is_running

from adaptive_kv.controller import Controller
from adaptive_kv.controller.asking import MAX_FAULTS
from adaptive_kv.errors import PolicyError
from adaptive_kv.events import Event, PolicyFault
from adaptive_kv.loader import RemotePolicy, remote, start_policy
from adaptive_kv.policy import CacheMode, Decision
from adaptive_kv.testing import DEFAULT_LADDER, make_reading

HEAD = """
import os, signal, sys, time
from pathlib import Path
from adaptive_kv import Decision, Reading

hoard, calls, here = [], [], Path(__file__).parent

def decide(now):
    calls.append(now.step)
"""
PATIENCE_S = 60.0

Serve = Callable[..., "Service"]


class Service:
    """What of the service a policy meets: a controller that asks, and what it says."""

    def __init__(self, policy: RemotePolicy, name: str) -> None:
        self.policy = policy
        self.events: list[Event] = []
        self.controller = Controller(
            policy,
            name=name,
            fallback=lambda _: Decision("int4", "the fallback speaks"),
            ladder=tuple(CacheMode(mode) for mode in DEFAULT_LADDER),
            min_dwell_s=0.0,
            max_age_s=2.0,
            deadline_s=1.0,
            emit=self.events.append,
        )
        self.num_steps = 0

    def step(self) -> str:
        self.num_steps += 1
        return self.controller.decide(make_reading(step=self.num_steps)).mode

    def step_until(self, is_done: Callable[[], bool]) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not is_done():
            assert time.monotonic() < until_s, (self.controller.policy_status, self.events)
            self.step()
            time.sleep(0.001)

    @property
    def errors(self) -> list[str]:
        return [event.error for event in self.events if isinstance(event, PolicyFault)]

    @property
    def pid(self) -> int:
        child = self.policy._child
        assert child is not None
        return child._process.pid


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts a service whose policy has the given body; ends it, and sees that nothing is left."""
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.01)
    with ExitStack() as stack:

        def start(body: str, deadline_s: float = PATIENCE_S) -> Service:
            lines = [f"    {line}" for line in body.splitlines()]
            file = tmp_path / "hostile.py"
            file.write_text(HEAD + "\n".join(lines) + "\n")
            policy, name = start_policy(f"{file}:decide", {}, deadline_s=deadline_s)
            assert isinstance(policy, RemotePolicy)
            stack.callback(_end, policy)
            return Service(policy, name)

        yield start


def _end(policy: RemotePolicy) -> None:
    policy.close()
    assert policy.join(PATIENCE_S)
    assert policy._child is None


def is_own_child(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def wait_until(is_done: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not is_done():
        assert time.monotonic() < until_s
        time.sleep(0.005)


WRITE = """for fd in range(3, 64):
    try: os.write(fd, {!r})
    except OSError: pass
"""
HOSTILE = {
    "raises": ("1 / 0", "ZeroDivisionError: division by zero"),
    "spins": ("while True: pass", "is silent for 0.02 s"),
    "sleeps": ("time.sleep(10_000)", "is silent"),
    "answers no number": ("return float('nan')", "answered a float"),
    "answers a mode": ("return 'int8'", "answered a str"),
    "admits no number": ("return Decision('int8', admit=float('nan'))", "admit"),
    "gives no reason": ("return Decision('int8', reason=object())", "not JSON serializable"),
    "knows another mode": ("return Decision('int5')", "unknown cache mode 'int5'"),
    "changes its answer's insides": (
        "d = Decision('int8')\nobject.__setattr__(d, 'mode', 'int5')\nreturn d",
        "unknown cache mode 'int5'",
    ),
    "flaps": ("return Decision(('int8', 'full')[len(calls) % 2])", "two things in turns"),
    "eats memory": ("while True: hoard.append(b'x' * 2**24)", "MemoryError"),
    "recurses": ("return decide(now)", "RecursionError"),
    "exits": ("sys.exit(3)", "ended with status 3"),
    "exits at once": ("os._exit(4)", "ended with status 4"),
    "kills itself": ("os.kill(os.getpid(), 9)", "ended by SIGKILL"),
    "ends oddly": ("os.kill(os.getpid(), 40)", "ended by signal 40"),
    "writes everywhere": (
        WRITE.format(b"garbage\n") + "time.sleep(10_000)",
        "wrote garbage",
    ),
    "writes without end": (
        "while True:\n  " + WRITE.format(b"x" * 999).replace("\n", "\n  "),
        "a line of more than",
    ),
    "closes everything": ("os.closerange(0, 64)\ntime.sleep(10_000)", "its process was ended"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_policy_is_found_out_and_replaced(serve: Serve, kind: str) -> None:
    """The fallback takes over; the events say why; no process is left."""
    body, why = HOSTILE[kind]
    service = serve(body, 0.02 if "silent" in why else PATIENCE_S)
    service.step_until(lambda: service.controller.policy_status == "fallback")
    assert service.step() == "int4"
    assert service.controller.num_faults >= MAX_FAULTS
    assert why in service.errors[0]
    assert service.errors[-1].endswith("the fallback policy takes over")
    assert service.policy.join(PATIENCE_S)


def test_what_it_prints_reaches_nobody(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    service = serve(
        "print('garbage' * 10_000)\n"
        "sys.stderr.write('{\"decision\": 3}')\n"
        "os.write(1, b'\\xff' * 100_000)\n"
        "return Decision('int8', 'as ever')"
    )
    service.step_until(lambda: service.controller.mode == "int8")
    assert service.controller.num_faults == 0
    assert capfd.readouterr() == ("", "")


def test_nobody_waits_for_a_child_that_does_not_move(serve: Serve) -> None:
    """While the child is stopped a hundred decisions are made; the last good one stands."""
    service = serve("return Decision('int8', f'step {now.step}')")
    service.step_until(lambda: service.controller.mode == "int8")
    os.kill(service.pid, signal.SIGSTOP)
    wait_until(lambda: " T " in Path(f"/proc/{service.pid}/stat").read_text())
    assert [service.step() for _ in range(100)] == ["int8"] * 100
    assert service.controller.num_faults == 0
    os.kill(service.pid, signal.SIGCONT)
    answered = service.num_steps
    service.step_until(lambda: service.num_steps > answered + 3)
    assert service.controller.policy_status == "ok"


def test_readings_that_come_meanwhile_replace_each_other(serve: Serve) -> None:
    """The child is shown the newest, not a queue of old ones."""
    service = serve(
        "(here / 'seen').write_text(' '.join(map(str, calls)))\n"
        "while not (here / 'go').exists(): time.sleep(0.001)\n"
        "return Decision('int8')"
    )
    folder = Path(service.policy._policy.partition(":")[0]).parent
    service.step_until((folder / "seen").exists)
    for _ in range(50):
        service.step()
    newest = service.num_steps
    (folder / "go").touch()
    wait_until(lambda: len((folder / "seen").read_text().split()) >= 2)
    first, second = (folder / "seen").read_text().split()[:2]
    assert (int(first) < newest - 40, int(second)) == (True, newest)


def test_a_late_answer_is_taken_and_its_lateness_counted(serve: Serve) -> None:
    service = serve(
        "while not (here / 'go').exists(): time.sleep(0.001)\nreturn Decision('int8', 'at last')",
        deadline_s=0.2,
    )
    service.step_until(lambda: service.controller.num_faults == 1)
    assert service.errors == ["is silent for 0.2 s, its deadline is 0.2"]
    (Path(service.policy._policy.partition(":")[0]).parent / "go").touch()
    service.step_until(lambda: service.controller.mode == "int8")
    assert service.controller.policy_status == "ok"


def test_one_that_crashed_is_started_anew_and_heard_again(serve: Serve) -> None:
    service = serve(
        "if not (here / 'crashed').exists():\n"
        "    (here / 'crashed').touch()\n"
        "    os._exit(1)\n"
        "return Decision('int8')"
    )
    service.step_until(lambda: service.controller.mode == "int8")
    assert service.errors == ["its process ended with status 1"]
    assert service.controller.policy_status == "ok"


def test_one_that_was_replaced_comes_back_by_a_reload(serve: Serve) -> None:
    broken = serve("1 / 0")
    broken.step_until(lambda: broken.controller.policy_status == "fallback")
    mended = serve("return Decision('int8', 'mended')")
    broken.controller.reload(mended.policy, "mended")
    broken.step_until(lambda: broken.controller.mode == "int8")
    assert (broken.controller.name, broken.controller.policy_status) == ("mended", "ok")


def test_no_process_is_left_and_none_that_it_started(serve: Serve) -> None:
    service = serve(
        "import subprocess\n"
        "if len(calls) == 1:\n"
        "    started = subprocess.Popen(['sleep', '10000'])\n"
        "    (here / 'pid').write_text(str(started.pid))\n"
        "return Decision('int8')"
    )
    service.step_until(lambda: service.controller.mode == "int8")
    pid = service.pid
    started = int((Path(service.policy._policy.partition(":")[0]).parent / "pid").read_text())
    assert is_running(pid)
    assert is_running(started)
    service.controller.close()
    assert service.policy.join(PATIENCE_S)
    assert not is_own_child(pid)
    wait_until(lambda: not is_running(started))


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """Even while it spins, even if the parent is killed."""
    file = tmp_path / "spins.py"
    file.write_text("def decide(now):\n    while True: pass\n")
    code = (
        "import sys, time\n"
        "from adaptive_kv.loader import start_policy\n"
        "from adaptive_kv.testing import make_reading\n"
        "policy, _ = start_policy(sys.argv[1], {}, deadline_s=60)\n"
        "policy.exchange(make_reading())\n"
        "print(policy._child._process.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    wait_until(lambda: not is_running(pid))


def test_secrets_stay_with_the_service(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTIVE_KV_SERVER__TOKEN", "secret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials")
    service = serve("return Decision('int8', ' '.join(os.environ))")
    service.step_until(lambda: service.controller.mode == "int8")
    names = service.controller.decide(make_reading()).reason_text.split()
    assert "PATH" in names
    assert not {"ADAPTIVE_KV_SERVER__TOKEN", "CREDENTIALS_DIRECTORY"} & set(names)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1 / 0\n", "ZeroDivisionError"),
        ("x = 1\n", "defines no class or function"),
        ("def decide(now):\n  return (\n", "SyntaxError"),
        ("import os\nos._exit(5)\n", "ended with status 5"),
        ("hoard = [b'x' * 2**24 for _ in range(100)]\n", "MemoryError"),
    ],
)
def test_one_that_cannot_be_loaded_says_why_at_the_start(
    tmp_path: Path, text: str, why: str
) -> None:
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(PolicyError, match=why) as caught:
        start_policy(str(file), {}, deadline_s=1)
    assert caught.value.policy == str(file)


def test_options_that_cannot_be_handed_over_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be handed over"):
        start_policy(str(tmp_path / "any.py"), {"since": object()}, deadline_s=1)


def test_what_comes_with_us_runs_in_this_process(tmp_path: Path) -> None:
    policy, name = start_policy("fixed", {"mode": "int4"}, deadline_s=1)
    assert not isinstance(policy, RemotePolicy)
    assert name == "fixed"
    assert isinstance(policy(make_reading()), Decision)


def test_a_drop_in_and_its_options_reach_the_child(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from adaptive_kv import Decision\n"
        "class Mine:\n"
        "    def __init__(self, mode): self.mode = mode\n"
        "    def __call__(self, now): return Decision(self.mode)\n"
    )
    policy, name = start_policy("mine", {"mode": "int4"}, deadline_s=60, folder=tmp_path)
    assert isinstance(policy, RemotePolicy)
    assert name == "mine"
    service = Service(policy, name)
    service.step_until(lambda: service.controller.mode == "int4")
    assert service.controller.num_faults == 0
    _end(policy)
