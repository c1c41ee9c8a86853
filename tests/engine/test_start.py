"""What a start may take before the engine is there."""

from pathlib import Path

import pytest
from engines import MIB, Memory, make_settings, weights_bytes
from models import prepared

from adaptive_kv.config import Settings
from adaptive_kv.engine.start import make_keep, make_start_budget


def _settings(folder: Path, neighbour_bytes: int, budget: int | None = None) -> Settings:
    memory = Memory(folder / "memory.json", 64 * MIB)
    memory.neighbour_bytes = neighbour_bytes
    memory.write(0)
    given = {"source": f"file:{memory.path}", "floor": 10 * MIB, "budget": budget}
    return make_settings(memory=given)


@pytest.mark.parametrize(("neighbour_mib", "left_mib"), [(0, 54), (50, 4), (60, 0)])
def test_it_may_take_what_lies_above_the_floor(
    tmp_path: Path, neighbour_mib: int, left_mib: int
) -> None:
    settings = _settings(tmp_path, neighbour_mib * MIB)
    assert make_start_budget(settings, prepared()).allowance_bytes == left_mib * MIB


def test_a_memory_budget_holds_from_the_start(tmp_path: Path) -> None:
    limit_bytes = weights_bytes() + MIB
    budget = make_start_budget(_settings(tmp_path, 0, limit_bytes), prepared())
    assert (budget.limit_bytes, budget.weights_bytes) == (limit_bytes, weights_bytes())


def test_what_is_kept_is_what_is_configured(tmp_path: Path) -> None:
    settings = _settings(tmp_path, 0)
    keep = make_keep(settings.cache)
    assert (keep.sinks, keep.recent) == (settings.cache.sinks, settings.cache.recent)
