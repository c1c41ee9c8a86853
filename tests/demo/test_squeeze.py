"""The squeeze really takes memory, gives it back, keeps the floor, and ends with its parent."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from broker import comes_true
from hypothesis import given
from hypothesis import strategies as st

from adaptive_kv.demo.ballast import CHUNK_BYTES, HostMemory
from adaptive_kv.demo.processes import squeezing
from adaptive_kv.demo.room import Room
from adaptive_kv.demo.squeeze import Regulator, Squeeze, Watch, used_bytes
from adaptive_kv.sensors.meminfo import MeminfoSensor

MIB = 2**20
MOST = 160 * MIB
NOTHING_LEFT, EVERYTHING_LEFT = 0, 2**50
sizes = st.integers(0, 2**34)


def roomy() -> Room:
    """A floor far below what is free, so that only `most_bytes` limits."""
    free_bytes = MeminfoSensor().read().free_bytes
    return Room(floor_bytes=max(0, free_bytes - 4 * MOST), most_bytes=MOST)


def test_the_squeeze_takes_real_memory_and_gives_it_back() -> None:
    """What it says it holds is resident; giving it back frees it while the process lives on."""
    with squeezing(os.getpid(), "cpu", roomy()) as squeezer:
        pid = squeezer.process.pid
        assert comes_true(lambda: squeezer.latest.left_bytes > 0)
        before_bytes = used_bytes(pid)
        squeezer.leave(NOTHING_LEFT, 0)
        assert comes_true(lambda: squeezer.latest.held_bytes >= MOST - CHUNK_BYTES)
        assert used_bytes(pid) - before_bytes >= 0.9 * MOST
        squeezer.leave(EVERYTHING_LEFT, 0)
        assert comes_true(lambda: squeezer.latest.held_bytes == 0)
        assert used_bytes(pid) - before_bytes <= 0.1 * MOST
        assert squeezer.process.poll() is None


def test_the_squeeze_holds_nothing_without_an_order() -> None:
    regulator = Regulator(floor_bytes=0, most_bytes=MOST)
    squeeze = Squeeze(HostMemory(), MeminfoSensor(), regulator, lambda: 0)
    assert squeeze.step().held_bytes == 0
    assert squeeze.watch().held_bytes == 0


def test_the_squeeze_ends_with_its_stdin() -> None:
    with squeezing(os.getpid(), "cpu", roomy()) as squeezer:
        assert squeezer.process.stdin is not None
        squeezer.process.stdin.close()
        assert squeezer.process.wait(20) == 0


def test_the_squeeze_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Even a parent that could not clean up leaves nobody behind who holds memory."""
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
            import os, signal
            from adaptive_kv.demo.processes import squeezing
            from adaptive_kv.demo.room import Room
            with squeezing(os.getpid(), "cpu", {roomy()!r}) as squeezer:
                print(squeezer.process.pid, flush=True)
                signal.pause()
            """)
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.send_signal(signal.SIGKILL)
        parent.wait(20)
    assert comes_true(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie that waits for its reaper."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@given(free=sizes, used=sizes, held=sizes, floor=sizes, most=sizes, leave=sizes)
def test_taking_never_breaks_the_floor_nor_exceeds_the_most(
    free: int, used: int, held: int, floor: int, most: int, leave: int
) -> None:
    regulator = Regulator(floor_bytes=floor, most_bytes=most, leave_bytes=leave)
    change = regulator.change_bytes(Watch(free_bytes=free, used_bytes=used, held_bytes=held))
    assert change >= -held
    if change > 0:
        assert free - change >= floor
        assert held + change <= most


def test_what_others_take_is_given_back_and_what_the_service_takes_is_not() -> None:
    regulator = Regulator(floor_bytes=100 * MIB, most_bytes=MOST, leave_bytes=50 * MIB)
    still = Watch(free_bytes=150 * MIB, used_bytes=0, held_bytes=40 * MIB)
    others_took = Watch(free_bytes=130 * MIB, used_bytes=0, held_bytes=40 * MIB)
    service_took = Watch(free_bytes=130 * MIB, used_bytes=20 * MIB, held_bytes=40 * MIB)
    changes = [regulator.change_bytes(now) for now in (still, others_took, service_took)]
    assert changes == [0, -20 * MIB, 0]


def test_where_the_service_cannot_be_seen_an_order_is_carried_out_once() -> None:
    """Else giving memory to the service would be answered by giving it more."""
    regulator = Regulator(floor_bytes=0, most_bytes=MOST, is_blind=True)
    regulator.order(50 * MIB)
    reached = Watch(free_bytes=50 * MIB, used_bytes=0, held_bytes=40 * MIB)
    service_took = Watch(free_bytes=30 * MIB, used_bytes=0, held_bytes=40 * MIB)
    assert [regulator.change_bytes(now) for now in (reached, service_took)] == [0, 0]
    regulator.order(60 * MIB)
    assert regulator.change_bytes(service_took) == -30 * MIB
