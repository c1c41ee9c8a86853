"""What a step is made of, as measured on this box."""

import pytest
from driver import make_store
from engines import KIB, MIB
from models import prepared

from adaptive_kv.cache.geometry import Keep
from adaptive_kv.cache.slab import Budget
from adaptive_kv.engine.noise import noisy_cache
from adaptive_kv.engine.speed import Speed, convert_speed, measure_speed
from adaptive_kv.policy import CacheMode

_SPEED = Speed(
    step_s=0.01,
    row_s=0.001,
    context_token_s={"full": 1e-4, "int8": 5e-5, "int4": 4e-5},
    new_token_s=1e-3,
)


def _measure(family: str, budget: Budget) -> Speed | None:
    return measure_speed(prepared(family), keep=Keep(), slab_bytes=64 * KIB, budget=budget)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe"])
def test_every_format_is_timed_and_all_memory_given_back(family: str) -> None:
    budget = Budget()
    speed = _measure(family, budget)
    assert speed is not None
    assert set(speed.context_token_s) == {"full", "int8", "int4"}
    assert speed.step_s > 0
    assert speed.new_token_s > 0
    assert budget.cache_bytes == budget.used_bytes == 0


def test_a_family_that_cannot_be_packed_is_timed_in_full_alone() -> None:
    speed = _measure("deepseek_v3", Budget())
    assert speed is not None
    assert set(speed.context_token_s) == {"full"}


def test_where_memory_is_short_shorter_sequences_are_timed_or_none() -> None:
    roomy, tight = Budget(), Budget(3 * MIB)
    assert _measure("llama", roomy) is not None
    assert _measure("llama", tight) is not None
    assert tight.used_bytes == 0
    assert _measure("llama", Budget(100 * KIB)) is None


def test_the_slowest_switch_is_measured_and_the_cache_stays_what_it_was() -> None:
    store = make_store(prepared().groups)
    cache = noisy_cache(store, CacheMode("full"), 500)
    used_bytes = store.used_bytes
    assert (convert_speed(cache, ["int8", "int4", "full"]) or 0) > 0
    assert cache.is_settled
    assert store.used_bytes == used_bytes
    few = noisy_cache(store, CacheMode("full"), 20)
    assert convert_speed(few, ["int8", "full"]) is None


def test_on_a_cpu_a_clock_sees_how_long_a_switch_takes() -> None:
    speed = _measure("llama", Budget())
    assert speed is not None
    assert speed.convert_bytes_per_s is None


def test_a_window_ends_what_a_token_takes() -> None:
    def token_s(mode: str, *lengths: int) -> float:
        return _SPEED.token_s(CacheMode(mode), lengths, sinks=16)

    assert token_s("full", 1000) == pytest.approx(0.01 + 0.1)
    assert token_s("window:64", 1000) == pytest.approx(0.01 + 80 * 1e-4)
    assert token_s("window:64", 50) == token_s("full", 50)
    assert token_s("int8", 1000, 500) == pytest.approx(0.01 + 0.001 + 1500 * 5e-5)
    assert token_s("disabled", 1000, 500) == pytest.approx(0.01 + 0.001 + 1.5)
