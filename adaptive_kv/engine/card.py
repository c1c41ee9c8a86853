"""What clients may know about the model that is served."""

from collections.abc import Callable
from dataclasses import dataclass

from adaptive_kv.policy import CacheMode


def _any(_: CacheMode) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What clients may know about the model."""

    name: str
    max_context: int
    """Prompt and answer together, in tokens."""
    vocab_size: int
    """Token ids are below this."""
    created_s: int
    """Seconds since the epoch."""
    supports: Callable[[CacheMode], bool] = _any
    """Whether sequences of this model can be kept in a mode at all."""
