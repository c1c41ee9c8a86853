"""Serve a language model on an edge box; its KV cache changes form instead of falling over."""

from adaptive_kv.policy import CacheMode, Decision, Policy, Reading

__all__ = ["CacheMode", "Decision", "Policy", "Reading", "__version__"]

__version__ = "0.1.0"
