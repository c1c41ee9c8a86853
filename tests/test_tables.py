"""The tables of a reading."""

from dataclasses import replace

from adaptive_kv.policy import CacheMode, Cost, SequenceInfo
from adaptive_kv.tables import CostTable, SequenceTable, who
from adaptive_kv.testing import make_sequence

FULL, INT4 = CacheMode("full"), CacheMode("int4")


def test_a_cost_is_computed_once_and_only_when_asked_for() -> None:
    asked = []

    def compute(mode: CacheMode) -> Cost:
        asked.append(mode)
        return Cost(bytes=len(mode))

    table = CostTable([FULL, INT4], compute)
    assert set(table) == {FULL, INT4}
    assert len(table) == 2
    assert FULL in table
    assert "int8" not in table
    assert asked == []
    assert [table[FULL].bytes, table[CacheMode("full")].bytes] == [4, 4]
    assert asked == [FULL]
    assert dict(table) == {FULL: Cost(bytes=4), INT4: Cost(bytes=4)}


def _sequences(made: list[str]) -> SequenceTable:
    def make() -> tuple[SequenceInfo, ...]:
        made.append("once")
        return make_sequence("a"), make_sequence("b")

    return SequenceTable(("A", "B"), make)


def test_sequences_are_made_once_and_only_when_looked_at() -> None:
    made: list[str] = []
    table = _sequences(made)
    assert len(table) == 2
    assert who(table) == ("A", "B")
    assert made == []
    assert [each.id for each in table] == [table[0].id, table[1].id] == ["a", "b"]
    assert made == ["once"]


def test_a_table_of_sequences_is_as_good_as_a_tuple() -> None:
    table, same = _sequences([]), (make_sequence("a"), make_sequence("b"))
    assert table == same
    assert table == _sequences([])
    assert table != same[:1]
    assert hash(table) == hash(same)
    assert (table[1:], repr(table)) == (same[1:], repr(same))
    assert make_sequence("b") in table


def test_who_a_plain_tuple_is_of_is_told_by_id_and_what_is_permitted() -> None:
    bound, free = make_sequence("a", allow=["int8"]), make_sequence("a")
    assert who((free,)) == who((replace(free, num_tokens=9, mode=CacheMode("int8")),))
    assert len({who((free,)), who((bound,)), who((make_sequence("b"),))}) == 3
