"""A model that our attention would serve wrongly is refused when it is loaded."""

from typing import Any

import pytest
import torch
from models import make_module
from torch import Tensor, nn

from adaptive_kv.attention import interface
from adaptive_kv.engine.model import prepare
from adaptive_kv.engine.probe import probe


def _scale_queries(module: nn.Module, _args: Any, out: Tensor) -> Tensor:
    """What a family with its own scaling would do to an attention that does not know of it."""
    is_ours = module.config._attn_implementation == interface.NAME  # type: ignore[union-attr]
    return out * 1.5 if is_ours else out


def test_attention_that_scales_otherwise_than_the_stock_model_is_refused() -> None:
    module = make_module()
    for layer in module.model.layers:
        layer.self_attn.q_proj.config = module.config
        layer.self_attn.q_proj.register_forward_hook(_scale_queries)
    with pytest.raises(ValueError, match="differ from the stock model"):
        probe(prepare(module))


def test_logits_that_are_not_numbers_are_refused_even_if_the_first_are() -> None:
    module = make_module()
    model = prepare(module)
    calls: list[list[int]] = []
    module.register_forward_pre_hook(
        lambda _, __, kwargs: calls.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    probe(model)
    late = calls[-1][-1]
    assert late not in calls[-2]  # the other sequence, which is compared first, stays good
    with torch.no_grad():
        module.get_input_embeddings().weight[late] = torch.nan  # type: ignore[operator]
    with pytest.raises(ValueError, match="differ from the stock model"):
        probe(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_weights_pass_in_every_dtype(dtype: torch.dtype) -> None:
    assert probe(prepare(make_module(dtype=dtype))) < 0.1


def test_probing_leaves_the_model_with_our_attention() -> None:
    model = prepare(make_module())
    probe(model)
    assert model.module.config._attn_implementation == interface.NAME
