"""A curve weighs what the page arithmetic weighs, and needs no model for it."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import make_header

from adaptive_kv.cache.costs import page_bytes
from adaptive_kv.cache.geometry import Keep, LayerGroup
from adaptive_kv.engine.recording import make_curves
from adaptive_kv.policy import CacheMode
from adaptive_kv.trace.curve import Curve, from_steps, measure
from adaptive_kv.trace.header import Header, header_from_json

modes = st.sampled_from(
    [
        CacheMode(mode)
        for mode in ("full", "int8", "int4", "window:100", "window:64+int4", "disabled")
    ]
)


@given(
    mode=modes,
    num_tokens=st.integers(0, 5000),
    keep=st.builds(Keep, sinks=st.integers(0, 40), recent=st.integers(0, 150)),
    own_window=st.none() | st.integers(1, 300),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=60, deadline=None)
def test_it_weighs_what_settled_pages_weigh(
    mode: CacheMode, num_tokens: int, keep: Keep, own_window: int | None, dtype: torch.dtype
) -> None:
    groups = (
        LayerGroup((0, 1), 2, 16, 16, dtype),
        LayerGroup((2,), 2, 16, 8, dtype, own_window),
    )
    curve = make_curves([mode], groups, keep, max_context=10_000)[mode]
    assert curve.bytes(num_tokens) == sum(page_bytes(mode, num_tokens, g, keep) for g in groups)


def test_a_window_that_no_sequence_outgrows_makes_no_table_longer() -> None:
    group = LayerGroup((0,), 1, 16, 16, torch.bfloat16, window=200_000)
    curve = make_curves([CacheMode("full")], (group,), Keep(), max_context=4096)["full"]  # type: ignore[index]
    assert len(curve.table) < 1000


@given(st.lists(st.integers(0, 5), min_size=4, max_size=50), st.integers(1, 4), st.integers(0, 9))
def test_it_comes_back_from_a_header_as_it_was(
    table: list[int], period_tokens: int, growth_bytes: int
) -> None:
    curve = Curve(tuple(table), period_tokens, growth_bytes)
    header = make_header(curves=dict.fromkeys(make_header().ladder, curve))
    assert header_from_json(header.to_json()) == header


@pytest.mark.parametrize(
    ("steps", "num_tokens", "period_tokens"),
    [
        ([], 4, 1),
        ([(1, 5)], 4, 1),
        ([(0, 5), (0, 6)], 4, 1),
        ([(0, 5), (9, 6)], 4, 1),
        ([(0, 5)], 4, 5),
        ([(0, 5)], 4, 0),
    ],
)
def test_steps_that_make_no_curve_are_refused(
    steps: list[tuple[int, int]], num_tokens: int, period_tokens: int
) -> None:
    with pytest.raises(ValueError, match="curve"):
        from_steps(steps, num_tokens, period_tokens, 1)


def test_measuring_looks_no_further_than_it_must() -> None:
    asked: list[int] = []

    def weigh(num_tokens: int) -> int:
        asked.append(num_tokens)
        return num_tokens // 4

    curve = measure(weigh, regular_from=8, period_tokens=4)
    assert max(asked) == 12
    assert [curve.bytes(n) for n in range(200)] == [n // 4 for n in range(200)]


@pytest.mark.parametrize(
    "change", [{"schema": "adaptive-kv.trace/2"}, {"ladder": []}, {"curves": {}}]
)
def test_a_header_that_a_replay_cannot_use_is_refused(change: dict[str, object]) -> None:
    values = json.loads(make_header().to_json()) | change
    with pytest.raises(ValueError, match=r"header"):
        header_from_json(json.dumps(values))


def test_nothing_in_a_header_names_the_box() -> None:
    assert not {"node", "host", "path"} & set(Header.__dataclass_fields__)
