"""Who runs in the next step, who waits, who is parked.

Running sequences are served before new ones are admitted. Priority decides first, arrival second;
parking takes from the other end.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.engine.sequence import Sequence, State


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `num_new` tokens of a sequence from `position` on, and the cache they go into."""

    sequence: Sequence
    cache: SequenceCache
    position: int
    num_new: int

    @property
    def is_last(self) -> bool:
        """Whether the sequence's next token can be sampled after it."""
        return self.position + self.num_new == len(self.sequence.tokens)

    @property
    def is_healing(self) -> bool:
        """Whether it goes into a cache that the sequence does not decode with."""
        return self.cache is not self.sequence.cache


class Scheduler:
    """Holds every sequence; `max_running` bounds the batch, `max_tokens` one step's work."""

    def __init__(self, max_running: int, max_tokens: int) -> None:
        self.max_running = max_running
        self.max_tokens = max_tokens
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        """New and parked sequences, most urgent first."""
        self.num_ends = 0
        """Sequences that were running and have ended."""
        self._turn = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.running and not self.waiting

    @property
    def everyone(self) -> list[Sequence]:
        """All sequences, running first."""
        return [*self.running, *self.waiting]

    @property
    def shadow_bytes(self) -> int:
        """Bytes of pages that healing uses and gives back to whoever needs them."""
        return sum(sequence.shadow_bytes for sequence in self.running)

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence wait its turn."""
        self.waiting.append(sequence)
        self.waiting.sort(key=lambda s: s.urgency)

    def admit(self, fits: Callable[[Sequence], bool]) -> Iterator[Sequence]:
        """Start the most urgent waiting sequences while they fit, and yield each before the next.

        Nobody overtakes: a large sequence at the head is not starved by small ones behind it.
        Only where nothing runs, so that waiting would help nobody, the first one that fits starts.
        """
        while len(self.running) < self.max_running:
            candidates = self.waiting[:1] if self.running else self.waiting
            sequence = next((s for s in candidates if fits(s)), None)
            if sequence is None:
                break
            self.waiting.remove(sequence)
            self.running.append(sequence)
            self.running.sort(key=lambda s: s.urgency)
            yield sequence

    def park(self, sequence: Sequence, now_s: float) -> None:
        """Take a running sequence off the batch; its caller has dropped its pages."""
        self.running.remove(sequence)
        sequence.state = State.PARKED
        sequence.num_parkings += 1
        sequence.num_in_vain += 1
        if sequence.num_output > sequence.num_when_parked:
            sequence.since_s, sequence.num_in_vain = now_s, 0
        elif not self.running:
            sequence.num_when_stuck = sequence.num_output
        sequence.num_when_parked = sequence.num_output
        sequence.num_ends_when_parked, sequence.fits_since_s = self.num_ends, None
        self.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            self.num_ends += 1

    def find(self, request_id: str) -> Sequence | None:
        """A sequence by its request's id."""
        return next((s for s in self.everyone if s.id == request_id), None)

    def last_in_line(self) -> Sequence | None:
        """The running sequence that is parked first: lowest priority, then newest."""
        return max(self.running, key=lambda s: s.urgency, default=None)

    def chunks(self, max_tokens: int) -> list[Chunk]:
        """The next step's work: every decode, then prefill and whole prefixes as far as they fit.

        Prefills begin with what others have of them. Work that is larger than a step's budget runs
        alone with the decodes; those that had to stand back take turns. Asked again before
        `end_turn`, the answer is the same.
        """
        decodes = [s for s in self.running if s.num_pending == 1]
        left = max_tokens - len(decodes)
        chunks = [_next(s, 1) for s in decodes]
        for sequence in self._larger_work():
            sequence.cache.adopt()
            wanted = sequence.num_pending
            granted = wanted if sequence.mode.is_disabled else min(wanted, max(left, 0))
            is_first = len(chunks) == len(decodes)
            if granted == 0 or (granted > left and not is_first):
                continue
            chunks.append(_next(sequence, granted))
            left -= granted
        return chunks

    def end_turn(self) -> None:
        """A step went well: others may come first in the next."""
        self._turn += 1

    def _larger_work(self) -> list[Sequence]:
        """Prefills in order of urgency and whole prefixes in turns, in turn."""
        others = [s for s in self.running if s.num_pending > 1]
        prefills = [s for s in others if not s.mode.is_disabled]
        whole = [s for s in others if s.mode.is_disabled]
        turn = self._turn // 2 % len(whole) if whole else 0  # each goes first now and then
        whole = [*whole[turn:], *whole[:turn]]
        return [*whole, *prefills] if self._turn % 2 else [*prefills, *whole]


def _next(sequence: Sequence, num_new: int) -> Chunk:
    return Chunk(sequence, sequence.cache, sequence.cache.num_stored, num_new)
