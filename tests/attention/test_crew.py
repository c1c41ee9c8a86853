"""Work is shared unit by unit, each done once, and nobody waits for a thread that does not come."""

import threading

import pytest

from adaptive_kv.attention.crew import Crew, Turns

_LOCK = threading.Lock()


def _take(turns: Turns) -> int:
    """What `add_one` does in the kernel."""
    with _LOCK:
        turns[0] += 1
        return int(turns[0]) - 1


def _finish(turns: Turns) -> None:
    with _LOCK:
        turns[1] += 1


@pytest.mark.parametrize(("num_helpers", "num_units"), [(0, 5), (1, 1), (1, 2), (3, 50)])
def test_every_unit_is_done_once(num_helpers: int, num_units: int) -> None:
    crew, done = Crew(num_helpers), []

    def work(turns: Turns) -> None:
        while (unit := _take(turns)) < num_units:
            done.append(unit)
            _finish(turns)

    for _ in range(20):
        done.clear()
        crew.run(work, num_units)
        assert sorted(done) == list(range(num_units))


def test_helpers_do_share() -> None:
    """A unit that nobody finishes alone: both threads must be inside at once."""
    crew, both, names = Crew(1), threading.Barrier(2), set()

    def work(turns: Turns) -> None:
        while _take(turns) < 2:
            both.wait(60)
            names.add(threading.current_thread().name)
            _finish(turns)

    crew.run(work, 2)
    assert names == {threading.current_thread().name, "attention-0"}


def test_a_helper_that_is_elsewhere_is_not_waited_for() -> None:
    crew, is_free, is_held = Crew(1), threading.Event(), threading.Event()

    def hold(turns: Turns) -> None:
        if threading.current_thread().name.startswith("attention"):
            is_held.set()
            is_free.wait(60)
        else:
            is_held.wait(60)
            turns[1] = 2

    def work(turns: Turns) -> None:
        while _take(turns) < 4:
            names.append(threading.current_thread().name)
            _finish(turns)

    names: list[str] = []
    crew.run(hold, 2)
    crew.run(work, 4)
    assert names == [threading.current_thread().name] * 4
    is_free.set()
