"""Weights that are laid out for the processor."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_module
from torch import nn

from adaptive_kv.engine.few_rows import multiply
from adaptive_kv.engine.linear import BlockedLinear, FewRowsLinear, block_linears, read_by_row
from adaptive_kv.engine.model import prepare, weights_bytes

_WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 2048}


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 512), (7, 512), (1, 9, 512), (0, 512)])
def test_a_blocked_layer_gives_what_the_plain_one_gives(
    shape: tuple[int, ...], has_bias: bool
) -> None:
    plain = nn.Linear(512, 384, bias=has_bias).requires_grad_(requires_grad=False)
    hidden = torch.randn(shape)
    torch.testing.assert_close(BlockedLinear(plain)(hidden), plain(hidden))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 80), (1, 1, 80), (80,), (3, 80), (2, 4, 80), (31, 80), (70, 80), (0, 80)]
)
def test_a_layer_read_by_row_gives_what_the_plain_one_gives(
    shape: tuple[int, ...], has_bias: bool, dtype: torch.dtype
) -> None:
    plain = nn.Linear(80, 33, bias=has_bias, dtype=dtype).requires_grad_(requires_grad=False)
    hidden = torch.randn(shape, dtype=dtype)
    torch.testing.assert_close(FewRowsLinear(plain)(hidden), plain(hidden))


@settings(deadline=None)
@given(num_out=st.integers(1, 40), num_in=st.sampled_from([8, 24, 48, 64]), num=st.integers(1, 9))
def test_few_rows_are_multiplied_as_in_double_precision(
    num_out: int, num_in: int, num: int
) -> None:
    """Vectors of 8 and of 16, tiles that are not full, rows that do not follow each other."""
    torch.manual_seed(num_out)
    weight, hidden = torch.randn(num_out, num_in), torch.randn(num, 2 * num_in)[:, ::2]
    expected = (hidden.double() @ weight.double().T).float()
    torch.testing.assert_close(multiply(weight, hidden), expected, rtol=1e-5, atol=1e-5)


def test_what_is_not_a_number_stays_so() -> None:
    """A broken model must be seen to be one."""
    layer = FewRowsLinear(nn.Linear(64, 8, bias=False).requires_grad_(requires_grad=False))
    hidden = torch.ones(1, 64)
    hidden[0, 5] = torch.nan
    assert layer(hidden).isnan().all()


def test_every_layer_that_is_left_is_read_by_row_from_where_it_is() -> None:
    module = make_module(**_WIDE, tie_word_embeddings=True)
    before_bytes = weights_bytes(module)
    prepare(module)
    kinds = {type(m) for m in module.modules() if isinstance(m, nn.Linear)}
    head = module.get_submodule("lm_head")
    assert not kinds
    assert isinstance(head, FewRowsLinear)
    assert head.weight is module.get_input_embeddings().weight
    assert weights_bytes(module) == before_bytes


def test_other_types_and_what_fills_no_vector_are_left_alone() -> None:
    module = nn.Sequential(nn.Linear(8, 8).double(), nn.Linear(12, 8))
    assert read_by_row(module) == 0


def test_only_large_layers_of_a_model_are_replaced_and_nothing_is_kept_twice() -> None:
    module = make_module(**_WIDE)
    before_bytes = weights_bytes(module)
    prepare(module)
    replaced = [name for name, m in module.named_modules() if isinstance(m, BlockedLinear)]
    assert {name.rsplit(".", 1)[-1] for name in replaced} == {"gate_proj", "up_proj", "down_proj"}
    assert weights_bytes(module) == before_bytes


def test_a_head_that_shares_its_weight_with_the_embeddings_stays_as_it_is() -> None:
    sizes = {**_WIDE, "vocab_size": 4096}
    tied, apart = make_module(**sizes, tie_word_embeddings=True), make_module(**sizes)
    block_linears(tied)
    block_linears(apart)
    assert type(tied.get_submodule("lm_head")) is nn.Linear
    assert type(apart.get_submodule("lm_head")) is BlockedLinear


def test_a_type_that_the_processor_has_no_product_for_leaves_the_model_as_it_is() -> None:
    module = nn.Sequential(nn.Linear(512, 1024).double())
    assert block_linears(module) == 0
    assert type(module[0]) is nn.Linear
