"""The sequences of a replay: as long as recorded, in the modes that the policy gave them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from adaptive_kv.policy import CacheMode, SequenceInfo
from adaptive_kv.trace.curve import Curve
from adaptive_kv.trace.header import Header
from adaptive_kv.trace.moment import Seen


@dataclass(slots=True, eq=False)
class Live:
    """One sequence. It is `running`, or waits for memory and keeps no pages."""

    number: int
    id: str
    mode: CacheMode
    priority: int
    allow: frozenset[CacheMode] | None
    since_s: float
    """It waits since then."""
    num_tokens: int = 0
    share: float = 0.0
    """Of its tokens, how many have pages yet: a prefill goes on for several moments."""
    gap_tokens: int = 0
    """Dropped by a window for good."""
    is_running: bool = False
    is_rejected: bool = False
    """It has waited for too long, and never runs again."""
    is_exact: bool = True
    cache_bytes: int = 0
    whole_bytes: int = 0
    """What all its tokens would weigh in its mode, were they stored."""

    def info(self) -> SequenceInfo:
        """What a policy is shown."""
        return SequenceInfo(
            id=self.id,
            num_tokens=self.num_tokens,
            mode=self.mode,
            cache_bytes=self.cache_bytes,
            priority=self.priority,
            allow=self.allow,
            exact=self.is_exact,
        )


@dataclass(frozen=True, slots=True)
class _Form:
    """What a mode makes of sequences, looked up once: a day asks a million times."""

    curve: Curve
    is_exact: bool
    is_windowed: bool
    base: Curve | None
    """Without its window, where that has bytes to tell them by."""

    @classmethod
    def of(cls, mode: CacheMode, curves: Mapping[CacheMode, Curve]) -> Self:
        """Of one of the modes that have a curve."""
        base = curves.get(CacheMode(mode.page_format)) if mode.window else None
        has_bytes = base is not None and base.growth_bytes > 0
        return cls(
            curves[mode], mode.is_exact, mode.window is not None, base if has_bytes else None
        )


class Crowd:
    """Everybody who is in the record now, by number."""

    def __init__(self, header: Header) -> None:
        self._forms = {mode: _Form.of(mode, header.curves) for mode in header.curves}
        self._full = header.curves.get(CacheMode("full"))
        self._slab_bytes = header.slab_bytes
        self._everyone: dict[int, Live] = {}
        self._unserved: set[int] = set()

    def __iter__(self) -> Iterator[Live]:
        return iter(self._everyone.values())

    def running(self) -> list[Live]:
        """Those with pages, the most urgent first."""
        running = [each for each in self if each.is_running]
        running.sort(key=_urgency)
        return running

    def waiting(self) -> list[Live]:
        """Those without, the most urgent first."""
        waiting = [each for each in self if not (each.is_running or each.is_rejected)]
        waiting.sort(key=_urgency)
        return waiting

    @property
    def num_rejected(self) -> int:
        """Of those that are gone, how many had waited in vain until then."""
        return len(self._unserved)

    def follow(self, seen: Iterable[Seen], time_s: float) -> list[tuple[Live, int]]:
        """Become as long as recorded; who gained how many tokens."""
        before, self._everyone = self._everyone, {}
        gains: list[tuple[Live, int]] = []
        for record in seen:
            live = before.pop(record.number, None)
            if live is None:
                live = Live(
                    number=record.number,
                    id=f"seq-{record.number}",
                    mode=record.mode,
                    priority=record.priority,
                    allow=record.allow,
                    since_s=time_s,
                )
            elif record.num_tokens > live.num_tokens:
                gains.append((live, record.num_tokens - live.num_tokens))
            live.num_tokens = record.num_tokens
            if live.share < 1:
                live.share = self._stored_share(record)
            self.weigh(live)
            self._everyone[record.number] = live
        self._unserved -= self._everyone.keys()  # it was only parked when it was recorded
        self._unserved |= {live.number for live in before.values() if not live.is_running}
        return gains

    def weigh(self, live: Live) -> None:
        """Bring bytes, gap and exactness up to date."""
        form = self._forms.get(live.mode)
        num_bytes = 0 if form is None else form.curve.bytes(live.num_tokens)
        is_stored = live.is_running and live.share > 0
        if is_stored:
            self._note_loss(live, form, num_bytes)
        live.whole_bytes = 0 if form is None else _without_gap(live, form, num_bytes)
        live.cache_bytes = int(live.share * live.whole_bytes) if is_stored else 0

    def bytes(self, live: Live, mode: CacheMode) -> int:
        """What all its tokens would weigh in a mode."""
        if mode == live.mode:
            return live.whole_bytes
        form = self._forms.get(mode)
        if form is None:
            return live.cache_bytes
        return _without_gap(live, form, form.curve.bytes(live.num_tokens))

    def held_bytes(self) -> int:
        """What the cache has taken: whole slabs."""
        used_bytes = sum([live.cache_bytes for live in self._everyone.values()])
        return -(-used_bytes // self._slab_bytes) * self._slab_bytes

    def _stored_share(self, record: Seen) -> float:
        """How much of a sequence was stored when it was seen, 0 to 1."""
        form = self._forms.get(record.mode)
        before_bytes = form.curve.bytes(max(0, record.num_tokens - 1)) if form else 0
        return min(1.0, record.cache_bytes / before_bytes) if before_bytes else 1.0

    def _note_loss(self, live: Live, form: _Form | None, num_bytes: int) -> None:
        if form is None or self._full is None:
            live.is_exact &= live.mode.is_exact
            return
        if form.is_exact:
            return
        if live.is_exact:
            live.is_exact = num_bytes >= self._full.bytes(live.num_tokens)
        if form.base is not None:
            left_out = form.base.bytes(live.num_tokens) - num_bytes
            gap_tokens = left_out * form.base.period_tokens // form.base.growth_bytes
            live.gap_tokens = max(live.gap_tokens, gap_tokens)


def _without_gap(live: Live, form: _Form, num_bytes: int) -> int:
    """Of `num_bytes` for all tokens, those for the tokens that are left."""
    if form.is_windowed or not live.gap_tokens:
        return num_bytes
    return num_bytes - live.gap_tokens * form.curve.growth_bytes // form.curve.period_tokens


def _urgency(live: Live) -> tuple[int, int]:
    return -live.priority, live.number
