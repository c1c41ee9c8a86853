"""The oracle agrees with torch's own attention, and with the formulas it cannot do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from adaptive_kv.attention import reference
from adaptive_kv.cache import window


def _inputs(
    heads: int = 4, kv_heads: int = 2, num: int = 5, past: int = 7, dims: tuple[int, int] = (16, 16)
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(heads * 100 + num)
    return (
        torch.randn(heads, num, dims[0], generator=generator),
        torch.randn(kv_heads, past + num, dims[0], generator=generator),
        torch.randn(kv_heads, past + num, dims[1], generator=generator),
    )


def _causal(num: int, past: int) -> Tensor:
    return torch.ones(num, past + num, dtype=torch.bool).tril(past)


def _eager(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> Tensor:
    """Attention spelled out in float64, one head and one query at a time."""
    group = len(queries) // len(keys)
    out = torch.empty(*queries.shape[:2], values.shape[-1], dtype=torch.float64)
    for h in range(queries.shape[0]):
        for i in range(queries.shape[1]):
            seen = visible[i].nonzero()[:, 0]
            scores = keys[h // group, seen].double() @ queries[h, i].double() * 0.3
            if softcap is not None:
                scores = softcap * (scores / softcap).tanh()
            weights = scores.exp()
            total = weights.sum()
            if sink_logits is not None:
                total = total + sink_logits[h].double().exp()
            out[h, i] = (weights / total) @ values[h // group, seen].double()
    return out


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1), (8, 2)])
@pytest.mark.parametrize("dims", [(16, 16), (24, 10)])
def test_grouped_queries_equal_scaled_dot_product_attention(
    heads: int, kv_heads: int, dims: tuple[int, int]
) -> None:
    q, k, v = _inputs(heads, kv_heads, dims=dims)
    mask = _causal(5, 7)
    wanted = functional.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask, scale=0.3, enable_gqa=True
    )[0]
    found = reference.attend(q, k, v, scaling=0.3, visible=mask)
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 0.5, 30.0])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("num", [1, 5])
def test_softcap_and_sink_logits_equal_their_formulas(
    softcap: float | None, num: int, *, has_sinks: bool
) -> None:
    q, k, v = _inputs(num=num)
    sinks = torch.tensor([-3.0, 0.0, 1.5, 4.0]) if has_sinks else None
    mask = _causal(num, 7)
    found = reference.attend(q, k, v, scaling=0.3, visible=mask, softcap=softcap, sink_logits=sinks)
    assert torch.allclose(found.double(), _eager(q, k, v, mask, softcap, sinks), atol=1e-6)


def test_without_a_mask_everything_is_seen() -> None:
    q, k, v = _inputs(num=1)
    everything = torch.ones(1, 8, dtype=torch.bool)
    masked = reference.attend(q, k, v, scaling=0.3, visible=everything)
    assert torch.equal(reference.attend(q, k, v, scaling=0.3), masked)


@pytest.mark.parametrize("score_bytes", [1, 400, 5000])
def test_blocks_of_queries_give_the_same_as_all_at_once(
    score_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = _inputs(num=23)
    sinks, mask = torch.randn(4), _causal(23, 7)

    def attend() -> Tensor:
        return reference.attend(q, k, v, scaling=0.3, visible=mask, softcap=9, sink_logits=sinks)

    at_once = attend()
    monkeypatch.setattr(reference, "SCORE_BYTES", score_bytes)
    assert torch.allclose(attend(), at_once, atol=1e-6)


def test_the_order_of_keys_does_not_matter() -> None:
    q, k, v = _inputs(num=1)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    mixed = reference.attend(q, k[:, order], v[:, order], scaling=0.3)
    assert torch.allclose(mixed, reference.attend(q, k, v, scaling=0.3), atol=1e-6)


@given(
    start=st.integers(0, 300),
    num=st.integers(1, 40),
    mode_window=st.one_of(st.none(), st.integers(1, 200)),
    sinks=st.integers(0, 40),
    own_window=st.one_of(st.none(), st.integers(1, 200)),
)
@settings(max_examples=60, deadline=None)
def test_visibility_is_causal_within_windows_or_a_sink(
    start: int, num: int, mode_window: int | None, sinks: int, own_window: int | None
) -> None:
    queries, keys = torch.arange(start, start + num), torch.arange(0, start + num, 3)
    visible = window.is_visible(
        queries, keys, window=mode_window, sinks=sinks, own_window=own_window
    )
    for row, query in enumerate(queries.tolist()):
        for column, key in enumerate(keys.tolist()):
            in_model = own_window is None or query - key < own_window
            in_mode = mode_window is None or query - key < mode_window or key < sinks
            assert visible[row, column] == (key <= query and in_model and in_mode)


@pytest.mark.parametrize(
    ("num_tokens", "hides"), [(16, False), (116, False), (117, True), (1000, True)]
)
def test_a_window_hides_something_once_sinks_and_window_no_longer_cover_all(
    num_tokens: int, *, hides: bool
) -> None:
    assert window.hides_any(100, num_tokens, 16) is hides
    assert not window.hides_any(None, num_tokens, 16)
