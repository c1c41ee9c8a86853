"""The models that are decoded with: each twice, prepared for us and as transformers runs it."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from adaptive_kv.engine.loading import LoadedModel, embedded_model
from adaptive_kv.engine.model import prepare

MODELS = ("demo", "llama-62m", "tiny")
_SHAPES: dict[str, dict[str, Any]] = {
    "llama-62m": {
        "vocab_size": 8192,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
    "tiny": {
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


@dataclass(frozen=True, slots=True)
class Pair:
    """The same float32 weights for both sides."""

    ours: LoadedModel
    stock: PreTrainedModel


def load_pair(name: str) -> Pair:
    """A model by its name in `MODELS`; random weights are the same in every run."""
    stock, twin = _make(name), _make(name)
    tokenizer: Any = AutoTokenizer.from_pretrained(embedded_model())
    missing = range(len(tokenizer), twin.config.vocab_size)
    tokenizer.add_tokens([f" word{number}" for number in missing])
    ours = LoadedModel(name=name, model=prepare(twin), tokenizer=tokenizer, eos_ids=frozenset())
    stock.train(mode=False).requires_grad_(requires_grad=False)
    return Pair(ours, stock)


def _make(name: str) -> PreTrainedModel:
    if name == "demo":
        auto: Any = AutoModelForCausalLM
        module: PreTrainedModel = auto.from_pretrained(embedded_model(), dtype=torch.float32)
        return module
    torch.manual_seed(1)
    config = LlamaConfig(max_position_embeddings=8192, tie_word_embeddings=False, **_SHAPES[name])
    return LlamaForCausalLM(config)
