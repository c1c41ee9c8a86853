"""Captured decode steps, on the CPU: a replay is the same function on the same buffers.

Triton's interpreter runs the kernels, so `test_graphs.py` runs this in a process with
`TRITON_INTERPRET=1`.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from driver import make_store
from engines import KIB, Stand, check, check_empty, make_stand
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from models import make_module, prompt
from torch import Tensor

from adaptive_kv.attention import gpu
from adaptive_kv.attention.batch import Row
from adaptive_kv.attention.gpu_buffers import StepBuffers
from adaptive_kv.cache.geometry import Keep
from adaptive_kv.cache.slab import Budget
from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.engine.graphs import Capture, DecodeGraphs, Replay, capture_decodes
from adaptive_kv.engine.model import Model, prepare
from adaptive_kv.engine.noise import noisy_cache
from adaptive_kv.policy import CacheMode

_SMALL: dict[str, Any] = {"num_key_value_heads": 1, "num_attention_heads": 2, "head_dim": 16}
_PACKED_BITS = (8, 4)


@pytest.fixture(autouse=True)
def _interpreted() -> Iterator[None]:
    assert os.environ["TRITON_INTERPRET"] == "1", "run me through test_graphs.py"
    torch.manual_seed(0)
    yield


@functools.cache
def small(family: str = "llama") -> Model:
    num_layers = 1 if family == "llama" else 2
    return prepare(make_module(family, **_SMALL, num_hidden_layers=num_layers))


def captured(model: Model, capture: Capture, max_rows: int = 4) -> DecodeGraphs:
    budget = Budget()
    graphs = capture_decodes(
        model,
        keep=Keep(16, 32),
        slab_bytes=32 * KIB,
        budget=budget,
        max_rows=max_rows,
        capture=capture,
    )
    assert budget.cache_bytes == budget.workspace_bytes == 0
    return graphs


class Again:
    """Captures as a GPU does, but for the speed: what is replayed starts the very same kernels.

    Every launch must have the grid, the options and the numbers that it was captured with, and must
    read its rows where they were then: nothing of it could have been different in a graph.
    """

    def __init__(self) -> None:
        self.num_replays = 0
        self._launches: list[object] = []
        self._start = gpu._start

    def __call__(self, run: Callable[[], Tensor]) -> Replay:
        wanted, _ = self._watched(run)
        assert wanted

        def replay() -> Tensor:
            self.num_replays += 1
            found, logits = self._watched(run)
            assert found == wanted
            return logits

        return replay

    def _watched(self, run: Callable[[], Tensor]) -> tuple[list[object], Tensor]:
        self._launches = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gpu, "_start", self._watch)
            logits = run()
        return self._launches, logits

    def _watch(
        self, pages: Any, grid: tuple[int, int, int], options: dict[str, Any], *arguments: Any
    ) -> None:
        queries, keys, values, rows, sums, tops, _, out, *numbers = arguments
        shapes = [(x.shape, x.stride()) for x in (queries, keys, values, sums, tops, out)]
        self._launches.append((grid, options, shapes, rows.data_ptr(), rows.shape, numbers))
        self._start(pages, grid, options, *arguments)


def _busy(graphs: DecodeGraphs | None) -> Stand:
    """Sequences that join and leave while the mode changes, pages grow, and slabs come and go."""
    cache = {"slab": 32 * KIB, "recent": 16, "prefix": False}
    stand = make_stand(small(), graphs=graphs, cache=cache)
    stand.post(prompt(100), 20)
    stand.step(3)
    for mode in ("int8", "int4", "window:64+int4", "full"):
        stand.post(prompt(9 + 3 * len(stand.requests), seed=len(stand.requests)), 7)
        stand.pin(mode)
        stand.step(4)
        check(stand)
    stand.run()
    return stand


def test_tokens_are_those_of_steps_that_run_layer_by_layer() -> None:
    """Nothing that a graph would have fixed changes on the way."""
    again = Again()
    graphs = captured(small(), again)
    assert graphs
    num_compared = again.num_replays
    stand, plain = _busy(graphs), _busy(None)
    assert again.num_replays - num_compared > 12
    for id_ in plain.requests:
        assert stand.output(id_) == plain.output(id_)
    assert len({len(plain.output(id_)) for id_ in plain.requests}) == 2
    check_empty(stand)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_models_with_windows_and_sinks_of_their_own_are_captured(family: str) -> None:
    """Two groups of layers each."""
    assert len(small(family).groups) == 2
    graphs = captured(small(family), Again(), max_rows=1)
    assert graphs.why_none is None
    assert graphs


# Distrust


class Stale:
    """Captures badly: what was computed while capturing is answered for ever."""

    def __call__(self, run: Callable[[], Tensor]) -> Replay:
        logits = run().clone()
        return lambda: logits


class ForgetsTheLast:
    """Captures steps whose last row comes to nothing."""

    def __call__(self, run: Callable[[], Tensor]) -> Replay:
        def replay() -> Tensor:
            logits = run().clone()
            logits[-1] = 0
            return logits

        return replay


class NotANumber:
    """Captures steps that come to nothing at all."""

    def __call__(self, run: Callable[[], Tensor]) -> Replay:
        return lambda: torch.full_like(run(), torch.nan)


class KeepsNothing:
    """Captures steps whose keys and values get lost."""

    def __call__(self, run: Any) -> Replay:
        def replay() -> Tensor:
            logits: Tensor = run()
            (decodes,) = run.args[-1]._decodes
            for slab in decodes.pages.pages._slabs.values():
                slab.values.zero_()
            return logits

        return replay


@pytest.mark.parametrize("capture", [Stale(), ForgetsTheLast(), NotANumber()])
def test_a_replay_whose_logits_differ_is_refused(capture: Capture) -> None:
    graphs = captured(small(), capture, max_rows=2)
    assert not graphs
    assert graphs.why_none is not None
    assert "logits of a replayed step differ by" in graphs.why_none


def test_a_replay_that_keeps_other_keys_and_values_is_refused() -> None:
    graphs = captured(small(), KeepsNothing(), max_rows=2)
    assert not graphs
    assert graphs.why_none is not None
    assert "keys and values of a replayed step differ by" in graphs.why_none


def test_where_capturing_raises_every_step_runs_layer_by_layer_and_it_is_known_why() -> None:
    def capture(run: Callable[[], Tensor]) -> Replay:
        run()
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise ValueError("capture ended")

    graphs = captured(small(), capture)
    assert graphs.why_none == "RuntimeError: operation not permitted when stream is capturing"
    stand = make_stand(small(), graphs=graphs)
    stand.post(prompt(20), 4)
    stand.run()
    check_empty(stand)


def test_where_memory_is_short_nothing_is_captured_and_all_is_given_back() -> None:
    budget = Budget(small().weights_bytes + 64 * KIB, small().weights_bytes)
    graphs = capture_decodes(
        small(), keep=Keep(), slab_bytes=32 * KIB, budget=budget, max_rows=4, capture=Again()
    )
    assert not graphs
    assert graphs.why_none is not None
    assert "out of memory" in graphs.why_none
    assert budget.kept_bytes == small().weights_bytes


# The buffers

_ROWS = st.lists(
    st.tuples(
        st.sampled_from(("full", "int8", "int4", "window:70", "window:64+int4")),
        st.integers(1, 230),
        st.integers(0, 96),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.lists(_ROWS, min_size=1, max_size=3))
def test_the_device_is_told_all_of_a_step_and_nothing_of_the_one_before(
    steps: list[list[tuple[str, int, int]]],
) -> None:
    store = make_store(small("gemma2").groups, Keep(16, 30))
    buffers = StepBuffers(store, 6)
    at = buffers.numbers.data_ptr()
    for wanted in steps:
        caches = [noisy_cache(store, CacheMode(mode), length) for mode, length, _ in wanted]
        for _ in range(3):  # the later ones follow
            rows = [Row(cache, cache.num_stored, 1) for cache in caches]
            ids = [id_ for *_, id_ in wanted]
            has_packed = buffers.write(ids, rows)
            _check_told(store, buffers, rows, ids, has_packed=has_packed)
            for cache in caches:
                cache.commit(1, is_exact=True)
                cache.reserve(1)
        assert buffers.numbers.data_ptr() == at
        for cache in caches:
            cache.drop()


def _check_told(
    store: PageStore, buffers: StepBuffers, rows: list[Row], ids: list[int], *, has_packed: bool
) -> None:
    told_ids, positions, groups = buffers.views(buffers.max_rows)
    num_absent = buffers.max_rows - len(rows)
    assert told_ids.tolist() == ids + [0] * num_absent
    assert positions.tolist() == [row.position for row in rows] + [0] * num_absent
    formats: set[int] = set()
    for group, told in enumerate(groups):
        assert told[:, 0].tolist() == list(range(buffers.max_rows))
        assert told[:, 1].tolist() == [1] * len(rows) + [0] * num_absent
        assert not told[len(rows) :, 2:].any()
        for row, line in zip(rows, told.tolist(), strict=False):
            assert line[2] == row.position
            assert line[3] == (row.cache.mode.window or 1 << 30)
            formats |= _check_lists(store, row.cache, group, line[4:])
    assert has_packed == bool(formats & set(_PACKED_BITS))


def _check_lists(store: PageStore, cache: SequenceCache, group: int, told: list[int]) -> set[int]:
    """Lists in the device's memory against the page table; which formats there are."""
    lines = cache.page_table(group).lines
    full_bits = store.groups[group].group.full_bits
    for bits, address, num in zip((full_bits, 8, 4), told[::2], told[1::2], strict=True):
        wanted = lines[lines[:, 4] == bits][:, [0, 1, 2, 3, 5]]
        assert num == len(wanted)
        told_lines = (ctypes.c_int64 * (5 * num)).from_address(address) if num else ()
        assert np.array_equal(np.array(told_lines, np.int64).reshape(-1, 5), wanted)
    return set(np.unique(lines[:, 4]).tolist())
