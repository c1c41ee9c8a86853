"""Which model families are served, and what is special about some of them.

A family is listed once its greedy output has been shown equal to transformers' own, token for
token (tests/engine/test_families.py). Everything else is refused.
"""

from adaptive_kv.policy import CacheMode

FAMILIES = frozenset(
    {
        "cohere2",
        "deepseek_v3",
        "exaone4",
        "gemma2",
        "gemma3_text",
        "glm",
        "gpt_oss",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "stablelm",
        "starcoder2",
    }
)
"""`config.model_type` of what is served."""

_EXACT_ONLY = frozenset({"deepseek_v3"})
"""Latent attention reaches the cache expanded: correct, but not worth packing yet."""


def permits(model_type: str, mode: CacheMode) -> bool:
    """Whether a family may be served in a mode."""
    return mode.is_exact or model_type not in _EXACT_ONLY
