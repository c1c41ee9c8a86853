"""Spans of tokens, the material of plans."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `[start, stop)` that should be kept in `format`, or dropped where it is None."""

    start: int
    stop: int
    format: str | None


def drop(spans: list[Span], start: int, stop: int) -> list[Span]:
    """The same spans with `[start, stop)` dropped."""
    left = [Span(s.start, min(s.stop, start), s.format) for s in spans if s.start < start]
    right = [Span(max(s.start, stop), s.stop, s.format) for s in spans if s.stop > stop]
    if not spans or start >= stop:
        return spans
    last = spans[-1].stop
    return [*left, Span(min(start, last), min(stop, last), None), *right]
