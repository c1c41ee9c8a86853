"""The cost table of a moment."""

from adaptive_kv.engine.cost_table import CostTable
from adaptive_kv.policy import CacheMode, Cost

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
