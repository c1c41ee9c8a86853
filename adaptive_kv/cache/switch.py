"""Switching: bringing a sequence's pages from one plan to another, a bounded amount per call.

Dropping costs nothing and comes first. Then pages are converted block by block, oldest first:

    full -> int4    | f f f f |  read, packed into the spare page  | p |   three pages are freed
    int4 -> full    | p |        read, unpacked into new pages     | f f f f |   keeps the loss

Every page stays readable throughout, so a switch may stop after any block and go on later.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from adaptive_kv.cache.formats import FORMAT_NAMES, cpu, gpu
from adaptive_kv.cache.page import Page
from adaptive_kv.cache.prefixes import Holder
from adaptive_kv.cache.span import Span
from adaptive_kv.cache.store import GroupPages
from adaptive_kv.cache.table import SequenceCache, make_run

_ALL_LAYERS = slice(None)


@dataclass(frozen=True, slots=True)
class Progress:
    """What one call of `advance` did. `freed_bytes` is negative where the cache grew."""

    moved_bytes: int
    freed_bytes: int


def advance(
    cache: SequenceCache,
    max_bytes: int | None = None,
    *,
    is_late: Callable[[], bool] = lambda: False,
) -> Progress:
    """Bring `cache` nearer to its mode's plan, reading and writing about `max_bytes` of pages.

    Not more than one block of pages is converted once it `is_late`.
    Sets `cache.is_settled` once nothing is left to do. Raises `torch.OutOfMemoryError` where a
    switch to a larger format does not fit; what was done until then stays.
    """
    if cache.is_settled:
        return Progress(0, 0)
    used_bytes = cache.store.used_bytes
    moved_bytes = 0
    for group, pages in enumerate(cache.store.groups):
        plan = cache.plan(group)
        for span in plan:
            if span.format is None:
                cache.forget(group, span)
        for block, format_name in _blocks(cache, group, plan):
            has_enough = max_bytes is not None and moved_bytes >= max_bytes
            if has_enough or (moved_bytes and is_late()):
                return Progress(moved_bytes, used_bytes - cache.store.used_bytes)
            moved_bytes += _convert(cache, group, pages, block, format_name)
    cache.settle()
    return Progress(moved_bytes, used_bytes - cache.store.used_bytes)


def _blocks(cache: SequenceCache, group: int, plan: list[Span]) -> Iterator[tuple[list[Page], str]]:
    """Adjacent pages to be converted together, and the format they should have."""
    formats = cache.store.groups[group].formats
    others: dict[Holder, list[Span]] = {}
    spans = iter(plan)
    span = next(spans, None)
    block: list[Page] = []
    for page in cache.pages(group):
        while span is not None and page.start >= span.stop:
            span = next(spans, None)
        if span is None or page.num_tokens == 0:
            return
        if span.format is None or page.format == span.format:
            continue
        wanted = _most_exact(span.format, page, cache, others)
        if page.format == wanted:
            continue
        block.append(page)
        if page.stop - block[0].start >= formats[wanted].tokens_per_page:
            yield block, wanted
            block = []


def _most_exact(
    own: str, page: Page, cache: SequenceCache, others: dict[Holder, list[Span]]
) -> str:
    """Of what all want who share a page, `own` among them; `others` remembers their plans."""
    if page.block is None:
        return own
    wishes = {own}
    for holder in page.block.holders:
        if holder is cache:
            continue
        if holder not in others:
            others[holder] = holder.plan(page.block.group)
        wishes |= {s.format for s in others[holder] if s.start <= page.start < s.stop and s.format}
    return min(wishes, key=FORMAT_NAMES.index)


def _convert(
    cache: SequenceCache, group: int, pages: GroupPages, block: Sequence[Page], format_name: str
) -> int:
    """Rewrite a block of pages in another format; returns bytes read and written."""
    target = pages.formats[format_name]
    first, num_tokens = block[0].start, block[-1].stop - block[0].start
    new: list[Page] = []
    try:
        for start in range(first, first + num_tokens, target.tokens_per_page):
            page = pages.take(format_name, start, may_use_spare=True)
            new.append(page)
        rewrite(pages, block, new)
    except torch.OutOfMemoryError:
        pages.give(new)
        raise
    for page in new:
        page.num_tokens = target.tokens_per_page
        page.is_exact = all(old.is_exact for old in block) and not target.is_packed
    cache.replace(group, block, new)
    return (len(block) + len(new)) * pages.group.page_bytes


def rewrite(pages: GroupPages, block: Sequence[Page], new: Sequence[Page]) -> None:
    """Fill `new` pages with the tokens of `block`."""
    group, device = pages.group, pages.pages.device
    lines = pages.lines([*block, *new])
    sources, targets = lines[: len(block)], lines[len(block) :]
    per_slab = pages.pages.pages_per_slab, pages.sides.pages_per_slab
    if cpu.can_convert(group, sources, device):
        cpu.convert(group, sources, targets, per_slab)
    elif gpu.can_convert(group, sources, device):
        gpu.convert(group, sources, targets, per_slab, device)
    else:
        rewrite_in_torch(pages, block, new)


def rewrite_in_torch(pages: GroupPages, block: Sequence[Page], new: Sequence[Page]) -> None:
    """As `rewrite`, page by page; the oracle of the kernels."""
    target = pages.formats[new[0].format]
    parts = [
        pages.formats[page.format].read(make_run(pages, [page]), _ALL_LAYERS) for page in block
    ]
    keys, values = (torch.cat(rows, 2) for rows in zip(*parts, strict=True))
    for page, k, v in zip(
        new,
        keys.split(target.tokens_per_page, 2),
        values.split(target.tokens_per_page, 2),
        strict=True,
    ):
        target.write(make_run(pages, [page]), k, v)
