import subprocess
import sys

import pytest

from adaptive_kv.errors import UnknownModeError
from adaptive_kv.policy import Cost, Device
from adaptive_kv.testing import DEFAULT_LADDER, make_costs, make_reading, make_sequence


def test_a_reading_is_plausible_before_anything_is_given() -> None:
    now = make_reading()
    assert 0 < now.pressure < 1
    assert now.ladder == DEFAULT_LADDER
    assert set(now.costs) == set(DEFAULT_LADDER)
    assert now.load.running == len(now.sequences) == 1
    assert now.memory.cache_bytes == now.sequences[0].cache_bytes == now.costs[now.mode].bytes


def test_costs_shrink_along_the_ladder_and_say_what_is_exact() -> None:
    costs = make_costs(("full", "int8", "int4", "window:64+int4"), 4096)
    sizes = [cost.bytes for cost in costs.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert [cost.exact for cost in costs.values()] == [True, False, False, False]


def test_everything_can_be_given_flat() -> None:
    now = make_reading(
        time_s=5.0, total_bytes=100, free_bytes=30, floor_bytes=10, cache_bytes=7,
        seconds_to_floor=2.0, waiting=3, running=2, mode="int8", ladder=("full", "int8"),
        costs={"full": Cost(bytes=2), "int8": Cost(bytes=1)}, device=Device(temperature_c=60.0),
        sequences=(), p95_s=None,
    )  # fmt: skip
    assert (now.time_s, now.memory.headroom_bytes, now.memory.cache_bytes) == (5.0, 20, 7)
    assert (now.seconds_to_floor, now.load.waiting, now.load.running) == (2.0, 3, 2)
    assert (now.mode, now.costs[now.mode].bytes) == ("int8", 1)
    assert (now.device.temperature_c, now.latency.p95_s) == (60.0, None)


def test_a_mode_off_the_ladder_has_its_cost_too() -> None:
    assert "window:9" in make_reading(mode="window:9").costs


def test_sequences_follow_from_their_mode() -> None:
    packed = make_sequence("a", mode="int4", allow=["int4"], num_tokens=100)
    assert not packed.exact
    assert packed.permits("int4")
    assert not packed.permits("full")
    assert 0 < packed.cache_bytes < make_sequence("b", num_tokens=100).cache_bytes
    assert make_sequence("c", mode="disabled").cache_bytes == 0


@pytest.mark.parametrize("wrong", [{"mode": "int3"}, {"ladder": ["full", "int3"]}])
def test_unknown_modes_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UnknownModeError):
        make_reading(**wrong)  # type: ignore[arg-type]


def test_a_policy_authors_tests_need_the_standard_library_alone() -> None:
    code = (
        "import sys, adaptive_kv.testing\n"
        "own = {m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names\n"
        "print(sorted(m for m in own if not m.startswith(('_', 'adaptive_kv'))))"
    )
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
