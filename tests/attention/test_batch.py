"""A ragged batch answers every row as if it were alone, whatever its length and mode."""

import pytest
import torch
from driver import MODES, Live, make_store, settle, start, step
from models import make_module, prepared, prompt, relative_error, stock
from oracle import FULL_TOLERANCE, Shadow
from torch import Tensor

from adaptive_kv.cache.geometry import Keep
from adaptive_kv.engine.families import permits
from adaptive_kv.engine.model import prepare
from adaptive_kv.policy import CacheMode

both_paths = pytest.mark.parametrize("use_kernels", [True, False], ids=["kernels", "reference"])


def _stock_logits(family: str, ids: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = stock(family)(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits


@both_paths
def test_ragged_rows_equal_the_stock_model_through_chunked_prefill_and_decode(
    *, use_kernels: bool
) -> None:
    model = prepared()
    store = make_store(model.groups)
    lengths = (1, 2, 15, 16, 17, 70, 111, 200)
    lives = [start(store, prompt(n, seed=n)) for n in lengths]
    num_compared = 0
    for _ in range(14):
        logits = step(model, lives, 33, use_kernels=use_kernels)
        for live, row in zip(lives, logits, strict=True):
            seen = live.ids[: live.cache.num_stored]
            assert relative_error(row, _stock_logits("llama", seen)) <= FULL_TOLERANCE
            num_compared += 1
            if live.num_pending == 0:
                live.ids.append(int(row.argmax()))
        store.check()
    assert num_compared == 14 * 8
    assert all(live.num_pending == 1 for live in lives)


@both_paths
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "gpt_oss"])
def test_all_seven_modes_in_one_batch_equal_the_stock_model_fed_the_same(
    family: str, *, use_kernels: bool
) -> None:
    model = prepared(family)
    store = make_store(model.groups)
    lives = [start(store, prompt(250 + 7 * n, seed=n), mode) for n, mode in enumerate(MODES)]
    shadows = [Shadow(stock(family)) for _ in lives]
    chunk_tokens = 100
    for _ in range(12):
        wanted = [
            shadow.next_logits(live, _num_next(live, chunk_tokens))
            for live, shadow in zip(lives, shadows, strict=True)
        ]
        logits = step(model, lives, chunk_tokens, use_kernels=use_kernels)
        for live, row, want in zip(lives, logits, wanted, strict=True):
            assert relative_error(row, want) <= FULL_TOLERANCE, live.cache.mode
            if live.cache.mode.is_disabled or live.num_pending == 0:
                live.ids.append(int(row.argmax()))
        settle(lives)
        for live, shadow in zip(lives, shadows, strict=True):
            shadow.check_pages(live)
        store.check()
    assert [live.cache.is_exact for live in lives] == [mode.is_exact for mode in MODES]


def _num_next(live: Live, chunk_tokens: int) -> int:
    is_whole = live.cache.mode.is_disabled
    return live.num_pending if is_whole else min(chunk_tokens, live.num_pending)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_models_stay_near_to_their_float32_selves_in_every_mode(dtype: torch.dtype) -> None:
    model = prepare(make_module(dtype=dtype))
    store = make_store(model.groups)
    lives = [start(store, prompt(120), mode) for mode in MODES]
    while any(live.num_pending for live in lives if not live.cache.mode.is_disabled):
        logits = step(model, [live for live in lives if live.num_pending], 50)
        settle(lives)
    wanted = _stock_logits("llama", lives[0].ids)
    errors = [relative_error(row.float(), wanted) for row in logits]
    limits = [0.5 if mode.page_format == "int4" else 0.1 for mode in MODES]
    assert [error <= limit for error, limit in zip(errors, limits, strict=True)] == [True] * 7


def test_a_step_that_does_not_commit_leaves_no_trace() -> None:
    model = prepared()
    store = make_store(model.groups)
    live = start(store, prompt(50))
    for _ in range(2):
        live.cache.reserve(50)
        live.cache.roll_back()
        assert (store.used_bytes, store.held_bytes, live.cache.num_stored) == (0, 0, 0)
    (logits,) = step(model, [live])
    assert relative_error(logits, _stock_logits("llama", live.ids)) <= FULL_TOLERANCE


@both_paths
def test_pages_that_moved_between_steps_are_found_again(*, use_kernels: bool) -> None:
    model = prepared()
    store = make_store(model.groups)
    leaving, staying = lives = start(store, prompt(100)), start(store, prompt(100, seed=1))
    while staying.num_pending:
        step(model, lives, 8)  # page by page, so that the two share every slab
    leaving.cache.drop()
    moved_bytes = store.compact(2**30)
    staying.ids.append(5)
    (logits,) = step(model, [staying], use_kernels=use_kernels)
    assert moved_bytes > 0
    assert relative_error(logits, _stock_logits("llama", staying.ids)) <= FULL_TOLERANCE


def test_tokens_seen_only_through_a_window_are_never_called_exact() -> None:
    model = prepared()
    store = make_store(model.groups, Keep(sinks=16, recent=32))
    live = start(store, prompt(200), "window:100")
    found = []
    for _ in range(2):
        step(model, [live], 100)
        found.append(live.cache.is_exact)
    live.cache.mode = CacheMode("full")
    settle([live])
    found.append(live.cache.is_exact)
    assert found == [True, False, False]  # the first 100 tokens still saw everything


def test_a_dropped_cache_has_nothing_inexact() -> None:
    model = prepared()
    store = make_store(model.groups)
    live = start(store, prompt(200), "int4")
    step(model, [live], 200)
    settle([live])
    was_exact = live.cache.is_exact
    live.cache.drop()
    assert (was_exact, live.cache.is_exact, live.cache.used_bytes) == (False, True, 0)


def test_the_families_tried_in_every_mode_are_permitted_them() -> None:
    assert all(permits("gpt_oss", mode) for mode in MODES)
