"""Tiny random models, one per family, and what a test compares them with."""

import copy
import functools
import logging
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from adaptive_kv.engine.model import Model, prepare

transformers.logging.set_verbosity(logging.ERROR)
torch.set_num_threads(1)

VOCAB = 97
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,  # tied random weights would repeat one token for ever
}
"""Widths that all families share."""

_ALTERNATING = {
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}

FAMILY_CONFIGS: dict[str, dict[str, Any]] = {
    "cohere2": {"sliding_window": 32},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "first_k_dense_replace": 1,
    },
    "exaone4": {"sliding_window": 32},
    "gemma2": {"head_dim": 16, "sliding_window": 32, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, **_ALTERNATING},
    "glm": {"head_dim": 16},
    "gpt_oss": {
        "head_dim": 16,
        "sliding_window": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "granite": {"attention_multiplier": 0.2},
    "llama": {},
    "mistral": {"sliding_window": 32},
    "mixtral": {"num_local_experts": 4},
    "nemotron": {"head_dim": 16},
    "olmo2": {},
    "phi3": {"original_max_position_embeddings": 1024},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
}
"""By `config.model_type`: what differs from the common widths."""


def make_config(family: str, **changes: Any) -> PretrainedConfig:
    """A tiny configuration of a family."""
    return transformers.AutoConfig.for_model(
        family, **copy.deepcopy({**BASE, **FAMILY_CONFIGS[family], **changes})
    )


def make_module(
    family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    """A fresh random model with eager attention. The same arguments give the same weights.

    Weights are larger than a fresh model's, so that what a token attends to decides what follows.
    """
    config: Any = make_config(family, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        auto: Any = AutoModelForCausalLM
        module: PreTrainedModel = auto.from_config(config, dtype=dtype, attn_implementation="eager")
        with torch.no_grad():
            for name, weights in module.named_parameters():
                if weights.dim() > 1 and "router" not in name:
                    weights.normal_(std=0.15)
    module.train(mode=False)
    return module


@functools.cache
def stock(family: str = "llama") -> PreTrainedModel:
    """The model of a family as transformers runs it, float32; not to be changed."""
    return make_module(family)


@functools.cache
def prepared(family: str = "llama") -> Model:
    """The same weights as `stock`, made ready for ragged batches; not to be changed."""
    return prepare(make_module(family))


def prompt(num_tokens: int, seed: int = 0) -> list[int]:
    """Random token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (num_tokens,), generator=generator).tolist()


def relative_error(actual: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference relative to the largest wanted value."""
    return ((actual - wanted).abs().max() / wanted.abs().max()).item()
