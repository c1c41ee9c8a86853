"""The scheduler: everyone gets a turn, nobody overtakes, the last in line goes first."""

from collections import Counter
from collections.abc import Callable

from driver import make_store
from engines import EOS, tokenizer
from models import VOCAB, prepared, prompt

from adaptive_kv.cache.store import PageStore
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.engine.mailbox import Request, SamplingParams
from adaptive_kv.engine.sampling import SamplingState
from adaptive_kv.engine.scheduler import Chunk, Scheduler
from adaptive_kv.engine.sequence import Sequence, State
from adaptive_kv.engine.text import TextStream
from adaptive_kv.policy import CacheMode


def _anyone(_: Sequence) -> bool:
    return True


class _Line:
    """Sequences in order of arrival, over one store."""

    def __init__(self, max_running: int = 16, max_tokens: int = 64) -> None:
        self.store: PageStore = make_store(prepared().groups)
        self.scheduler = Scheduler(max_running, max_tokens)
        self.num = 0

    def add(
        self, num_tokens: int, mode: str = "full", *, priority: int = 0, ran: bool = False
    ) -> Sequence:
        """One more; `ran` tells that all but its newest token are stored."""
        self.num += 1
        ids = tuple(prompt(num_tokens))
        sequence = Sequence(
            request=Request(id=f"s{self.num}", prompt_ids=ids, priority=priority),
            cache=SequenceCache(self.store, CacheMode(mode)),
            sampling=SamplingState.start(SamplingParams(), ids, VOCAB, eos_ids=[EOS]),
            text=TextStream(tokenizer()),
            number=self.num,
            since_s=0.0,
            tokens=list(ids),
        )
        if ran:
            sequence.cache.reserve(num_tokens - 1)
            sequence.cache.commit(num_tokens - 1, is_exact=True)
        self.scheduler.add(sequence)
        return sequence

    def start(self, fits: Callable[[Sequence], bool] = _anyone) -> list[str]:
        return [sequence.id for sequence in self.scheduler.admit(fits)]

    def chunks(self, max_tokens: int | None = None) -> list[Chunk]:
        return self.scheduler.chunks(max_tokens or self.scheduler.max_tokens)


def _sizes(chunks: list[Chunk]) -> dict[str, int]:
    return {chunk.sequence.id: chunk.num_new for chunk in chunks}


def test_decodes_come_first_and_prefill_takes_what_is_left() -> None:
    line = _Line(max_tokens=64)
    line.add(100)
    line.add(30, ran=True)
    line.add(9, ran=True)
    line.start()
    chunks = line.chunks()
    assert _sizes(chunks) == {"s2": 1, "s3": 1, "s1": 62}
    assert [chunk.is_last for chunk in chunks] == [True, True, False]
    assert chunks[0].position == 29


def test_several_prefills_share_a_step_in_order_of_urgency() -> None:
    line = _Line(max_tokens=64)
    for num_tokens in (40, 40, 40):
        line.add(num_tokens)
    line.start()
    assert _sizes(line.chunks()) == {"s1": 40, "s2": 24}


def test_a_whole_prefix_larger_than_a_step_runs_alone_with_the_decodes() -> None:
    line = _Line(max_tokens=64)
    line.add(200, "disabled")
    line.add(30, ran=True)
    line.start()
    for _ in range(4):
        assert _sizes(line.chunks()) == {"s2": 1, "s1": 200}
        line.scheduler.end_turn()


def test_small_whole_prefixes_share_a_step() -> None:
    line = _Line(max_tokens=64)
    for _ in range(3):
        line.add(20, "disabled")
    line.start()
    assert sum(_sizes(line.chunks()).values()) == 60


def test_among_whole_prefixes_and_prefills_nobody_starves() -> None:
    for num_whole in (1, 2, 3, 4, 5):
        line = _Line(max_tokens=64)
        for _ in range(num_whole):
            line.add(100, "disabled")
        prefills = [line.add(1000), line.add(1000)]
        line.start()
        served: Counter[str] = Counter()
        for _ in range(40 * num_whole):
            served.update(_sizes(line.chunks()).keys())
            line.scheduler.end_turn()
        assert len(served) == num_whole + 1, "the second prefill comes after the first"
        assert min(served.values()) >= 10, served
        assert served[prefills[0].id] >= 20


def test_a_step_that_is_retried_is_the_same_again() -> None:
    line = _Line(max_tokens=64)
    for _ in range(3):
        line.add(100, "disabled")
    line.start()
    chunks = line.chunks()
    assert line.chunks() == chunks
    line.scheduler.end_turn()
    line.scheduler.end_turn()
    assert line.chunks() != chunks


def test_nobody_overtakes_who_waits_at_the_head() -> None:
    line = _Line()
    line.add(10)
    line.start()
    line.add(500)
    line.add(10)
    assert line.start(lambda s: len(s.tokens) < 100) == []
    assert [s.id for s in line.scheduler.waiting] == ["s2", "s3"]


def test_where_nothing_runs_the_first_that_fits_starts() -> None:
    line = _Line()
    for num_tokens in (500, 10, 10):
        line.add(num_tokens)
    assert line.start(lambda s: len(s.tokens) < 100) == ["s2"]
    assert [s.id for s in line.scheduler.waiting] == ["s1", "s3"]


def test_no_more_run_than_may() -> None:
    line = _Line(max_running=2)
    for _ in range(3):
        line.add(10)
    assert line.start() == ["s1", "s2"]
    line.scheduler.remove(line.scheduler.running[0])
    assert line.start() == ["s3"]


def test_priority_goes_before_arrival_and_parking_takes_from_the_other_end() -> None:
    line = _Line()
    for priority in (0, 1, 0, -1):
        line.add(10, priority=priority)
    assert line.start() == ["s2", "s1", "s3", "s4"]
    parked = []
    while sequence := line.scheduler.last_in_line():
        line.scheduler.park(sequence, 5.0)
        assert sequence.state is State.PARKED
        parked.append(sequence.id)
    assert parked == ["s4", "s3", "s1", "s2"]
    assert [s.id for s in line.scheduler.waiting] == parked[::-1]


def test_who_gained_no_token_since_it_was_parked_has_waited_since_then() -> None:
    line = _Line()
    sequence = line.add(10)
    line.start()
    line.scheduler.park(sequence, 5.0)
    line.start()
    line.scheduler.park(sequence, 7.0)
    assert sequence.since_s == 5.0
    line.start()
    sequence.tokens.append(5)
    line.scheduler.park(sequence, 9.0)
    assert sequence.since_s == 9.0


def test_who_cannot_go_on_even_alone_lets_others_go_first_until_it_gains_a_token() -> None:
    line = _Line()
    stuck = line.add(10, priority=1)
    for _ in range(2):
        line.start()
        line.scheduler.park(stuck, 5.0)
    line.add(10)
    assert line.start() == ["s2", "s1"]
    stuck.tokens.append(5)
    line.scheduler.park(stuck, 9.0)
    assert line.start() == ["s1"]
    assert [s.id for s in line.scheduler.running] == ["s1", "s2"]
