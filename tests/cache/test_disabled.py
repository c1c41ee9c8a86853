"""An MLP evaluated in chunks of tokens answers as the plain one."""

import copy

import pytest
import torch
from models import make_module
from torch import Tensor, nn

from adaptive_kv.cache.disabled import ChunkedMLP, chunk_mlps, plan
from adaptive_kv.cache.span import Span


class _Counting(nn.Module):
    """An MLP that notes how many tokens it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.sizes: list[int] = []

    def forward(self, hidden: Tensor) -> Tensor:
        self.sizes.append(hidden.shape[1])
        out: Tensor = self.linear(hidden).relu()
        return out


class _WithRouter(_Counting):
    """A mixture of experts that also answers what its router thought of each token."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        out = super().forward(hidden)
        return out, out[0, :, :3]


@pytest.mark.parametrize("num_tokens", [1, 10, 11, 25])
def test_chunks_give_the_plain_answer_and_are_never_larger_than_asked(num_tokens: int) -> None:
    inner, hidden = _Counting(), torch.randn(1, num_tokens, 8)
    wanted = inner(hidden)
    inner.sizes.clear()
    assert torch.allclose(ChunkedMLP(inner, 10)(hidden), wanted, atol=1e-6)
    assert max(inner.sizes) <= 10
    assert sum(inner.sizes) == num_tokens


@pytest.mark.parametrize("num_tokens", [5, 25])
def test_tuples_of_hidden_states_and_router_logits_are_joined_token_by_token(
    num_tokens: int,
) -> None:
    inner, hidden = _WithRouter(), torch.randn(1, num_tokens, 8)
    for found, wanted in zip(ChunkedMLP(inner, 10)(hidden), inner(hidden), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "mixtral", "qwen3_moe", "deepseek_v3"])
def test_a_whole_model_in_chunks_gives_the_plain_logits(family: str) -> None:
    plain = make_module(family)
    chunked = copy.deepcopy(plain)
    assert chunk_mlps(chunked, chunk_tokens=7) == 4
    ids = torch.arange(3, 33)[None]
    with torch.no_grad():
        wanted, found = (m(input_ids=ids, use_cache=False).logits for m in (plain, chunked))
    assert torch.allclose(found, wanted, atol=1e-5 * wanted.abs().max().item())


def test_mlps_are_wrapped_once_however_often_it_is_asked_for() -> None:
    module = make_module()
    assert [chunk_mlps(module), chunk_mlps(module)] == [4, 0]
    nested = [m for m in module.modules() if isinstance(m, ChunkedMLP)]
    assert [isinstance(m.inner, ChunkedMLP) for m in nested] == [False] * 4


def test_wrapping_neither_adds_nor_renames_what_can_be_trained_twice() -> None:
    module = make_module()
    before = {id(weights) for weights in module.parameters()}
    chunk_mlps(module)
    assert {id(weights) for weights in module.parameters()} == before


def test_a_disabled_cache_plans_to_keep_nothing() -> None:
    assert plan(7) == [Span(0, 7, None)]
