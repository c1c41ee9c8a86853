"""Moments survive their lines; readings survive their moments, but for what is private."""

import math

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from loader.strategies import readings
from traces import make_orders

from adaptive_kv.policy import CacheMode, Device, Latency, Reading
from adaptive_kv.testing import make_reading, make_sequence
from adaptive_kv.trace.lines import Decoder, Encoder, Numbers, moment_of
from adaptive_kv.trace.moment import Moment, Seen

numbers = st.integers(0, 2**60)
maybe = st.none() | st.floats(allow_nan=False, allow_infinity=False)
modes = st.sampled_from([CacheMode(m) for m in ("full", "int8", "window:7+int8", "disabled")])
people = st.dictionaries(
    st.integers(0, 9), st.tuples(st.integers(-3, 3), st.none() | st.frozensets(modes)), min_size=1
)


@st.composite
def stories(draw: st.DrawFn) -> list[Moment]:
    """Moments in which sequences come, go, come back, and never change their nature."""
    natures = draw(people)

    def sequences() -> tuple[Seen, ...]:
        present = draw(st.lists(st.sampled_from(sorted(natures)), unique=True))
        return tuple(
            Seen(number, draw(numbers), draw(modes), draw(numbers), draw(st.booleans()), *nature)
            for number, nature in ((number, natures[number]) for number in present)
        )

    def moment() -> Moment:
        return Moment(
            time_s=draw(st.floats(0, 1e6)),
            step=draw(numbers),
            total_bytes=draw(st.sampled_from([1, 2])),
            free_bytes=draw(numbers),
            floor_bytes=0,
            weights_bytes=3,
            cache_bytes=draw(numbers),
            source=draw(st.sampled_from(["nvml", "file"])),
            sample_age_s=draw(st.floats(0, 9)),
            latency=Latency(token_s=draw(maybe), p50_s=draw(maybe), p95_s=draw(maybe)),
            waiting=draw(st.integers(0, 3)),
            tokens_per_s=draw(st.floats(0, 99)),
            device=Device(temperature_c=draw(maybe), throttled=draw(st.none() | st.booleans())),
            mode=draw(modes),
            step_bytes=draw(st.dictionaries(modes, numbers)),
            token_s=draw(st.dictionaries(modes, maybe)),
            sequences=sequences(),
            ordered=draw(modes),
            code="policy",
            reason=draw(st.text(max_size=5)),
            admit=draw(st.booleans()),
        )

    return [moment() for _ in range(draw(st.integers(1, 6)))]


@given(stories())
@settings(max_examples=100, deadline=None)
def test_moments_come_back_from_their_lines_as_they_were(story: list[Moment]) -> None:
    encoder, decoder = Encoder(), Decoder()
    lines = [encoder.line(moment) for moment in story]
    assert not any("\n" in line for line in lines)
    assert [decoder.moment(line) for line in lines] == story


@given(readings)
@settings(max_examples=100, deadline=None)
def test_a_moment_has_of_a_reading_what_a_replay_needs(reading: Reading) -> None:
    assume(math.isfinite(reading.time_s + reading.load.tokens_per_s))
    assume(len({s.id for s in reading.sequences}) == len(reading.sequences))
    moment = moment_of(reading, make_orders(), reading.time_s, Numbers())
    memory = reading.memory
    assert moment.time_s == 0
    assert moment.free_bytes + moment.cache_bytes == memory.free_bytes + memory.cache_bytes
    assert {m: moment.step_bytes[m] for m in reading.costs} == {
        m: cost.transient_bytes for m, cost in reading.costs.items()
    }
    told = [(s.num_tokens, s.mode, s.cache_bytes, s.priority, s.allow) for s in reading.sequences]
    kept = [(s.num_tokens, s.mode, s.cache_bytes, s.priority, s.allow) for s in moment.sequences]
    assert kept == told
    assert Decoder().moment(Encoder().line(moment)) == moment


def test_a_line_holds_only_what_changed() -> None:
    reading, encoder, ids = make_reading(), Encoder(), Numbers()
    first = encoder.line(moment_of(reading, make_orders(), 0.0, ids))
    second = encoder.line(moment_of(reading, make_orders(), 0.0, ids))
    assert len(second) < len(first) / 10


def test_names_of_requests_and_of_files_stay_at_home() -> None:
    sequences = [make_sequence("chatcmpl-secret"), make_sequence("b"), make_sequence("a")]
    reading = make_reading(sequences=sequences, source="file:/home/somebody/memory.json")
    moment = moment_of(reading, make_orders(), 0.0, Numbers())
    line = Encoder().line(moment)
    assert [each.number for each in moment.sequences] == [0, 1, 2]
    assert "secret" not in line
    assert "somebody" not in line


def test_a_sequence_that_was_parked_comes_back_with_its_number() -> None:
    ids = Numbers()
    assert [ids.of(id_) for id_ in ("a", "b", "a", "c", "b")] == [0, 1, 0, 2, 1]


def test_numbers_of_those_seen_longest_ago_are_forgotten() -> None:
    ids = Numbers()
    for number in range(5000):
        ids.of("keeps coming")
        ids.of(str(number))
    assert ids.of("keeps coming") == 0
    assert ids.of("0") > 4096
