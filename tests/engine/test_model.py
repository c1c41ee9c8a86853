"""What preparing a model finds out about it."""

from typing import Any

import pytest
import torch
import transformers
from models import BASE, make_module, prepared

from adaptive_kv.cache.disabled import ChunkedMLP
from adaptive_kv.cache.geometry import LayerGroup
from adaptive_kv.engine.model import prepare


def test_layers_with_the_same_shape_and_window_share_a_group() -> None:
    assert prepared("llama").groups == (LayerGroup((0, 1, 2, 3), 2, 16, 16, torch.float32),)
    assert prepared("gemma3_text").groups == (
        LayerGroup((0, 2), 2, 16, 16, torch.float32, 32),
        LayerGroup((1, 3), 2, 16, 16, torch.float32, None),
    )


def test_keys_and_values_may_differ_in_size() -> None:
    (group,) = prepared("deepseek_v3").groups
    assert (group.num_kv_heads, group.key_dim, group.value_dim) == (4, 24, 16)


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "mixtral", "qwen3_moe", "deepseek_v3"])
def test_every_layer_evaluates_its_mlp_in_chunks(family: str) -> None:
    wrapped = [m for m in prepared(family).module.modules() if isinstance(m, ChunkedMLP)]
    assert len(wrapped) == 4


def test_tied_weights_are_counted_once() -> None:
    apart = prepare(make_module())
    tied = prepare(make_module(tie_word_embeddings=True))
    embedding_bytes = 97 * 64 * 4
    assert apart.weights_bytes - tied.weights_bytes == embedding_bytes


def test_the_context_ends_where_the_model_or_its_operator_says() -> None:
    assert prepared().max_context == 1024
    assert prepare(make_module(), max_context=100).max_context == 100
    assert prepare(make_module(), max_context=5000).max_context == 1024


def test_rope_that_depends_on_the_longest_sequence_is_served_up_to_where_that_begins() -> None:
    factors = [1.0] * 8
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": 256,
    }
    model = prepare(make_module("phi3", original_max_position_embeddings=256, rope_parameters=rope))
    assert model.max_context == 256


def test_weights_can_not_be_trained_by_accident() -> None:
    module = prepared().module
    assert not module.training
    assert not any(weights.requires_grad for weights in module.parameters())


@pytest.mark.parametrize("family", ["bloom", "falcon_mamba", "qwen3_next"])
def test_models_with_layers_that_keep_other_state_are_refused(family: str) -> None:
    auto: Any = transformers.AutoModelForCausalLM
    config = transformers.AutoConfig.for_model(family, **BASE)
    with pytest.raises(ValueError, match="of 4 layers use attention that can be cached"):
        prepare(auto.from_config(config))


def test_stock_attention_is_undone_even_when_comparing_fails() -> None:
    model = prepare(make_module())
    with pytest.raises(KeyError), model.stock_attention() as stock:
        assert stock.config._attn_implementation == "eager"
        raise KeyError
    assert model.module.config._attn_implementation == "adaptive_kv"
