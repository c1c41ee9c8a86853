"""Mode `full`: every token as the model made it. Exact."""

from adaptive_kv.cache.span import Span


def plan(num_tokens: int) -> list[Span]:
    """One span of everything."""
    return [Span(0, num_tokens, "full")]
