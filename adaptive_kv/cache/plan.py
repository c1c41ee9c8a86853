"""A plan: for each span of a sequence's tokens, which format it should have, or dropped.

    tokens   0      sinks             kept_from      packed_until          num_tokens
    window:N+int4
             | full | (dropped) ..... | int4 ........ | full (recent) ..... |

Every border after the sinks lies a whole number of that format's pages from the end of the sinks,
so a page never straddles two spans, and the bytes of a plan are a function of length alone.
"""

import math
from dataclasses import dataclass

from adaptive_kv.cache import disabled, full, quantized, window
from adaptive_kv.cache.formats import FORMAT_NAMES, Format
from adaptive_kv.cache.geometry import BLOCK_TOKENS, Keep
from adaptive_kv.cache.span import Span, drop
from adaptive_kv.policy import CacheMode


@dataclass(frozen=True, slots=True)
class Reach:
    """What of a sequence a group of layers can still see, whatever the mode.

    `window` is the model's own sliding window; `gap_stop` ends the tokens after the sinks that
    an earlier window mode has dropped (0: none).
    """

    window: int | None = None
    gap_stop: int = 0


def next_change(
    mode: CacheMode, num_tokens: int, keep: Keep, formats: dict[str, Format], reach: Reach
) -> float:
    """The first length above `num_tokens` at which the plan may pack or drop more; may be inf."""
    borders = [
        (window - 1 + keep.sinks, BLOCK_TOKENS)
        for window in (mode.window, reach.window)
        if window is not None
    ]
    if mode.page_format != "full":
        borders.append((keep.sinks + keep.recent, formats[FORMAT_NAMES[1]].tokens_per_page))
    return min(
        (num_tokens + period - (num_tokens - first) % period for first, period in borders),
        default=math.inf,
    )


def make_plan(
    mode: CacheMode, num_tokens: int, keep: Keep, formats: dict[str, Format], reach: Reach
) -> list[Span]:
    """What `mode` wants for `num_tokens` stored tokens; spans in order, without holes."""
    if mode.is_disabled:
        return disabled.plan(num_tokens)
    if mode.page_format == "full":
        spans = full.plan(num_tokens)
    else:
        densest_first = FORMAT_NAMES[:0:-1]
        packed = densest_first[densest_first.index(mode.page_format) :]
        spans = quantized.plan(num_tokens, keep, [formats[name] for name in packed])
    if mode.window is not None:
        spans = window.without_old(spans, num_tokens, keep, mode.window)
    if reach.gap_stop:
        spans = drop(spans, keep.sinks, reach.gap_stop)
    if reach.window is not None:
        spans = window.without_unseen(spans, num_tokens, keep, reach.window)
    return spans
