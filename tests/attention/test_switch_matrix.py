"""From any of the seven modes to any other, on a live sequence, in small steps."""

import pytest
from driver import MODES, Live, make_store, settle, start, step
from models import prepared, prompt, relative_error, stock
from oracle import FULL_TOLERANCE, Shadow

from adaptive_kv.cache import switch
from adaptive_kv.cache.costs import page_bytes
from adaptive_kv.policy import CacheMode

_NUM_PROMPT = 360
_FEW_BYTES = 24 * 1024  # a few blocks of pages, so that a switch takes several steps


def _checked_step(live: Live, shadow: Shadow, chunk_tokens: int = 120) -> None:
    """One step whose logits are those of the oracle; appends a token when all have run."""
    is_whole = live.cache.mode.is_disabled
    num_new = live.num_pending if is_whole else min(chunk_tokens, live.num_pending)
    wanted = shadow.next_logits(live, num_new)
    (logits,) = step(prepared(), [live], chunk_tokens)
    assert relative_error(logits, wanted) <= FULL_TOLERANCE
    if is_whole or live.num_pending == 0:
        live.ids.append(int(logits.argmax()))
    shadow.check_pages(live)
    live.cache.store.check()


def _settle_checked(live: Live, shadow: Shadow) -> None:
    settle([live])
    shadow.check_pages(live)
    cache, store = live.cache, live.cache.store
    store.check()
    wanted = sum(
        page_bytes(cache.mode, cache.num_stored, pages.group, store.keep, gap_stop)
        for pages, gap_stop in zip(store.groups, cache.gap_stops, strict=True)
    )
    assert cache.used_bytes == store.used_bytes == wanted


def _bring_into(mode: CacheMode, live: Live, shadow: Shadow) -> None:
    """Prefill and two decode steps in a mode."""
    live.cache.mode = mode
    num_tokens = len(live.ids) + 2
    while len(live.ids) < num_tokens:
        _checked_step(live, shadow)
        _settle_checked(live, shadow)


@pytest.mark.parametrize("to_mode", MODES)
@pytest.mark.parametrize("from_mode", MODES)
def test_any_mode_switches_to_any_other_between_two_tokens(
    from_mode: CacheMode, to_mode: CacheMode
) -> None:
    live = start(make_store(prepared().groups), prompt(_NUM_PROMPT))
    shadow = Shadow(stock())
    _bring_into(from_mode, live, shadow)
    assert live.cache.is_exact is from_mode.is_exact

    live.cache.mode = to_mode
    num_wanted, is_done = len(live.ids) + 3, False
    while not is_done:
        switch.advance(live.cache, _FEW_BYTES)
        live.cache.store.compact(_FEW_BYTES)
        is_done = live.cache.is_settled and len(live.ids) >= num_wanted
        shadow.check_pages(live)
        _checked_step(live, shadow)
    _settle_checked(live, shadow)

    is_fresh = "disabled" in {from_mode, to_mode} or from_mode.is_exact
    assert live.cache.is_exact is (is_fresh and to_mode.is_exact)
