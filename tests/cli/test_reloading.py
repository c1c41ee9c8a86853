"""What a reload takes over from a configuration, what it leaves, and what it refuses whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from engines import MIB, Stand, make_settings, make_stand

from adaptive_kv.cli.reloading import Reloaded, Reloader
from adaptive_kv.config import Settings, load_settings
from adaptive_kv.errors import ConfigError, PolicyError

EXACT = {"ladder": ["full", "disabled"]}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log stays as pytest has it."""
    monkeypatch.setattr("adaptive_kv.cli.reloading.configure_logging", lambda _: None)


def settings(sections: Mapping[str, Any]) -> Settings:
    return load_settings(flags=sections, default_file=Path("/nonexistent.toml"))


def reload(stand: Stand, before: Settings, after: Settings) -> Reloaded:
    told: list[Reloaded] = []
    done = Reloader(stand.engine, before, lambda: after, told.append).reload()
    stand.step()
    assert told == [done]
    return done


def test_a_default_floor_follows_the_budget_that_is_in_force() -> None:
    stand = make_stand()
    before = settings({"memory": {"budget": 64 * MIB, "floor": 5}})
    done = reload(stand, before, settings({"memory": {"budget": 80 * MIB}}))
    assert done.changed == ("memory.floor",)
    assert stand.status.memory.floor_bytes == 8 * MIB
    assert done.need_restart == ("memory.budget", "memory.floor")


def test_a_floor_that_leaves_nothing_of_the_budget_in_force_is_refused() -> None:
    stand = make_stand()
    source = {"source": "budget", "budget": 64 * MIB}
    before = settings({"memory": source})
    after = settings({"memory": source | {"budget": 128 * MIB, "floor": 64 * MIB}})
    with pytest.raises(ConfigError, match="leaves nothing"):
        reload(stand, before, after)


def test_nothing_changed_starts_the_policy_anew_all_the_same() -> None:
    stand = make_stand()
    assert reload(stand, settings({}), settings({})).changed == ()
    assert stand.status.policy.name == "ladder", "which the stand itself does not follow"


def test_what_was_not_calibrated_does_not_join_the_ladder() -> None:
    stand = make_stand(cache=EXACT)
    with pytest.raises(ConfigError, match="int8 cannot join"):
        reload(stand, make_settings(cache=EXACT), make_settings(cache={"ladder": ["full", "int8"]}))
    stand.step()
    assert stand.engine.ladder == ("full", "disabled")


def test_what_was_refused_leaves_nothing_behind_for_the_next_reload() -> None:
    stand, before = make_stand(), settings({})
    files = iter(
        [
            settings({"policy": {"name": "lader"}, "memory": {"floor": 1}}),
            settings({"memory": {"floor": 2}}),
            settings({"memory": {"floor": 2}}),
        ]
    )
    reloader = Reloader(stand.engine, before, lambda: next(files), lambda _: None)
    with pytest.raises(PolicyError):
        reloader.reload()
    stand.step()
    assert (stand.status.policy.name, stand.status.memory.floor_bytes) == ("fixed", 0)
    assert reloader.reload().changed == ("memory.floor",)
    assert reloader.reload().changed == ()
