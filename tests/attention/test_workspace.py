"""What `costs` says that a step needs besides pages is enough, and no fantasy."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from driver import Live, make_store, settle, start, step
from models import make_module, prompt
from torch.profiler import ProfilerActivity, profile

from adaptive_kv.cache import window
from adaptive_kv.cache.costs import workspace_bytes
from adaptive_kv.engine.model import Model, prepare

_WIDTHS = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "vocab_size": 2000,
    "max_position_embeddings": 8192,
}
_MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "phi3": {},
    "gemma2": {"head_dim": 32},
    "gpt_oss": {"head_dim": 32},
    "mixtral": {},
    "deepseek_v3": {"num_key_value_heads": 8, "moe_intermediate_size": 256},
}


def _peak_bytes(run: Callable[[], object]) -> int:
    """The most that torch's allocator held at once beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    changes: list[tuple[int, int]] = []

    def collect(events: Iterable[Any]) -> None:
        for event in events:
            if event.tag.name == "Allocation":
                changes.append((event.start_time_ns, event.extra_fields.alloc_size))
            collect(event.children)

    results: Any = profiler.profiler
    collect(results.kineto_results.experimental_event_tree())
    now = peak = 0
    for _, change in sorted(changes, key=lambda found: found[0]):
        now += change
        peak = max(peak, now)
    return peak


def _make(family: str, dtype: torch.dtype) -> Model:
    return prepare(make_module(family, dtype, **{**_WIDTHS, **_MODELS[family]}))


def _measure(
    model: Model, mode: str, num_past: int, num_new: int, num_rows: int, *, use_kernels: bool = True
) -> tuple[int, int]:
    """The measured peak of one step and the bound that was given for it."""
    store = make_store(model.groups, slab_bytes=1 << 22)
    lives = [start(store, prompt(num_past, seed=n), mode) for n in range(num_rows)]
    for live in lives:
        _bring_up(model, live)
        live.ids += prompt(num_new, seed=9)
    num_tokens = sum(live.num_pending for live in lives)
    peak_bytes = _peak_bytes(lambda: step(model, lives, num_new, use_kernels=use_kernels))
    longest = num_past + num_new
    return peak_bytes, workspace_bytes(model.widths, model.groups, num_tokens, num_rows, longest)


def _bring_up(model: Model, live: Live) -> None:
    while live.num_pending and not live.cache.mode.is_disabled:
        step(model, [live], 512)
        settle([live])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", _MODELS)
def test_prefill_and_whole_prefixes_stay_within_their_bound(
    family: str, dtype: torch.dtype
) -> None:
    model = _make(family, dtype)
    for mode, num_past, num_new in (("full", 0, 512), ("disabled", 1400, 1)):
        peak_bytes, bound_bytes = _measure(model, mode, num_past, num_new, 1)
        assert peak_bytes <= bound_bytes <= 4 * peak_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["full", "int8", "int4", "window:128"])
def test_steps_over_a_long_past_stay_within_their_bound(mode: str, dtype: torch.dtype) -> None:
    model = _make("llama", dtype)
    for num_new, num_rows in ((1, 4), (128, 1)):
        peak_bytes, bound_bytes = _measure(
            model, mode, 1500, num_new, num_rows, use_kernels=num_new > 1
        )
        assert peak_bytes <= bound_bytes


def test_who_sees_whom_takes_one_byte_for_each_pair_and_little_besides() -> None:
    positions = torch.arange(2000)
    peak_bytes = _peak_bytes(
        lambda: window.is_visible(positions, positions, window=100, sinks=16, own_window=None)
    )
    assert 2000 * 2000 <= peak_bytes < 2000 * 2000 + 4 * 2**20
