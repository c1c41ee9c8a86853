"""Modes `int8` and `int4`: all tokens packed but the sinks and the newest.

The newest tokens stay full because they are read most and still change pages; the first ones
because attention leans on them whatever they say (StreamingLLM, arXiv 2309.17453). What is too
little for a page of the mode's own format goes into one of the next less dense format, so that a
denser mode never weighs more.
"""

from collections.abc import Sequence

from adaptive_kv.cache.formats import Format
from adaptive_kv.cache.geometry import Keep
from adaptive_kv.cache.span import Span


def plan(num_tokens: int, keep: Keep, packed: Sequence[Format]) -> list[Span]:
    """Sinks full, the middle in whole packed pages (`packed`: densest first), the rest full."""
    border = min(keep.sinks, num_tokens)
    spans = [Span(0, border, "full")]
    for used in packed:
        middle = max(0, num_tokens - keep.recent - border)
        stop = border + middle // used.tokens_per_page * used.tokens_per_page
        if stop > border:
            spans.append(Span(border, stop, used.name))
            border = stop
    return [*spans, Span(border, num_tokens, "full")]
