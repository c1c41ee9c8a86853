from collections.abc import Mapping

import pytest
from adaptive_kv_policies.fair import Fair
from hypothesis import given
from hypothesis import strategies as st
from plant import MIB, SIZES, box

from adaptive_kv.policy import CacheMode, Cost, Reading, SequenceInfo
from adaptive_kv.testing import DEFAULT_LADDER, make_sequence

TIGHT = 195
"""MiB that shall stay free above the floor: 5 % of 3900."""

Sequences = list[SequenceInfo]


def sequence(id_: str, num_tokens: int, mode: str = "full", **more: object) -> SequenceInfo:
    """Of 1000 tokens that all cost SIZES MiB."""
    cache_bytes = SIZES.get(mode, 0) * MIB * num_tokens // 1000
    return make_sequence(
        id_, num_tokens=num_tokens, mode=mode, cache_bytes=cache_bytes,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


def paid(sequences: Sequences, headroom: int) -> Mapping[str, str]:
    """Who is not in full, with `headroom` MiB above the floor."""
    decision = Fair()(box(100 + headroom, sequences=sequences))
    assert decision.mode == "full"
    return {id_: mode for id_, mode in decision.sequences.items() if mode != "full"}


ABC = [sequence("a", 200), sequence("b", 500), sequence("c", 300)]


@pytest.mark.parametrize(
    ("short", "who"),
    [
        (0, {}),
        (1, {"b": "int8"}),
        (235, {"b": "int8"}),
        (236, {"b": "int8", "c": "int8"}),
        (470, dict.fromkeys("abc", "int8")),
        (471, {"a": "int8", "b": "int4", "c": "int8"}),
        (9999, dict.fromkeys("abc", "window:1024+int4")),
    ],
)
def test_the_longest_pay_first_and_only_as_many_as_the_bytes_demand(
    short: int, who: dict[str, str]
) -> None:
    assert paid(ABC, TIGHT - short) == who


def test_the_lowest_priority_goes_all_the_way_before_the_next_pays() -> None:
    both = [sequence("low", 300), sequence("high", 700, priority=1)]
    assert paid(both, TIGHT - 200) == {"low": "int4"}
    assert paid(both, TIGHT - 283) == {"low": "window:1024+int4", "high": "int8"}


def test_a_request_pays_only_with_what_it_permits() -> None:
    bound = [
        sequence("a", 500, allow=["full"]),
        sequence("b", 300, allow=["full", "int4"]),
        sequence("c", 200, mode="window:9", allow=["window:9"]),
    ]
    decision = Fair()(box(100, sequences=bound))
    assert decision.sequences == {"b": "int4"}


def test_what_was_paid_is_paid_back_once_it_would_stay_free() -> None:
    """15 % of 3900 MiB, and the 235 that going back to full takes."""
    b = [sequence("b", 500, "int8"), sequence("a", 500)]
    assert paid(b, 585 + 234) == {"b": "int8"}
    assert paid(b, 585 + 235) == {}


def test_a_switch_under_way_is_not_paid_twice() -> None:
    """Ordered down, bytes not free yet: nobody else is asked."""
    under_way = make_sequence("b", num_tokens=500, mode="int8", cache_bytes=500 * MIB)
    assert paid([under_way, sequence("a", 500)], TIGHT - 200) == {"b": "int8"}


def test_one_that_outgrows_another_does_not_swap_places_with_it() -> None:
    grown = [sequence("a", 400, "int8"), sequence("b", 600)]
    assert paid(grown, TIGHT + 100) == {"a": "int8"}


def test_without_sequences_there_is_nothing_to_pay() -> None:
    assert paid([], 0) == {}


@given(
    lengths=st.lists(st.integers(0, 1000), max_size=6),
    modes=st.lists(st.sampled_from([*DEFAULT_LADDER, "window:9"]), min_size=6, max_size=6),
    sizes=st.lists(st.integers(0, 5000), min_size=5, max_size=5),
    free=st.integers(0, 4000),
)
def test_nobody_pays_with_a_mode_that_its_request_forbids(
    lengths: list[int], modes: list[str], sizes: list[int], free: int
) -> None:
    costs = {CacheMode(m): Cost(bytes=n) for m, n in zip(DEFAULT_LADDER, sizes, strict=True)}
    sequences = [
        make_sequence(str(i), num_tokens=n, mode=modes[i], allow=None if i % 2 else ["int4"])
        for i, n in enumerate(lengths)
    ]
    now: Reading = box(free, costs=costs, sequences=sequences)
    decision = Fair()(now)
    by_id = {each.id: each for each in sequences}
    assert decision.mode == DEFAULT_LADDER[0]
    assert all(by_id[id_].permits(mode) for id_, mode in decision.sequences.items())


@pytest.mark.parametrize(
    "options", [{"tight": -0.1}, {"tight": 0.2}, {"roomy": 1.0}, {"tight": float("nan")}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="tight < roomy"):
        Fair(**options)
