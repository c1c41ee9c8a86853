"""The models that are decoded with: each twice, prepared for us and as transformers runs it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
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
    "llama-69m": {
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 2816,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "tiny": {
        "vocab_size": 8192,
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
    tokenizer = _tokenizer(twin.config.vocab_size)
    ours = LoadedModel(name=name, model=prepare(twin), tokenizer=tokenizer, eos_ids=frozenset())
    stock.train(mode=False).requires_grad_(requires_grad=False)
    return Pair(ours, stock)


def save(name: str, folder: Path) -> None:
    """Write a random model as a folder that any server can load; no token ends its answers."""
    module = _make(name)
    no_config: Any = GenerationConfig
    module.generation_config = no_config()
    module.save_pretrained(folder)
    _tokenizer(module.config.vocab_size).save_pretrained(folder)


def _tokenizer(vocab_size: int) -> Any:
    """The embedded model's, and a word for every further token."""
    tokenizer: Any = AutoTokenizer.from_pretrained(embedded_model())
    tokenizer.add_tokens([f" word{number}" for number in range(len(tokenizer), vocab_size)])
    return tokenizer


def _make(name: str) -> PreTrainedModel:
    if name == "demo":
        auto: Any = AutoModelForCausalLM
        module: PreTrainedModel = auto.from_pretrained(embedded_model(), dtype=torch.float32)
        return module
    torch.manual_seed(1)
    config = LlamaConfig(
        max_position_embeddings=65536, tie_word_embeddings=False, eos_token_id=None, **_SHAPES[name]
    )
    return LlamaForCausalLM(config)
