"""Another policy, ladder and floor reach an engine between two steps, and no token is lost."""

from typing import Any

from engines import MIB, STEP_S, Stand, check_empty, check_rest, is_as_wanted, make_stand
from models import prompt

from adaptive_kv.engine.mailbox import Reconfigure
from adaptive_kv.loader import load_policy
from adaptive_kv.policy import CacheMode, Decision, Reading


def reconfigure(
    stand: Stand, policy: Any, *ladder: str, floor_bytes: int = 0, min_dwell_s: float = 0.0
) -> None:
    stand.engine.mailbox.post(
        Reconfigure(
            policy=policy,
            policy_name="another",
            ladder=tuple(map(CacheMode, ladder)),
            min_dwell_s=min_dwell_s,
            deadline_s=1e3,
            floor_bytes=floor_bytes,
        )
    )


def test_a_policy_sees_the_new_ladder_and_floor_in_its_first_reading() -> None:
    seen: list[Reading] = []
    stand = make_stand()
    ids = [stand.post(prompt(40), 12), stand.post(prompt(90, seed=1), 12)]
    stand.step(5)
    reconfigure(stand, seen.append, "disabled", "full", floor_bytes=5 * MIB)
    stand.run()
    assert (seen[0].step, seen[0].ladder) == (5, ("disabled", "full"))
    assert seen[0].memory.floor_bytes == 5 * MIB
    assert stand.status.policy.name == "another"
    assert all(is_as_wanted(stand, id_) and stand.finished(id_) for id_ in ids)
    check_empty(stand)


def test_a_mode_that_left_the_ladder_stays_until_the_policy_chooses_another() -> None:
    stand = make_stand(policy={"name": "fixed", "options": {"mode": "int4"}})
    stand.step()
    assert stand.status.mode == "int4"
    reconfigure(stand, lambda _: None, "full", "int8")
    stand.step()
    assert stand.status.mode == "int4"
    reconfigure(stand, load_policy("ladder", {})[0], "full", "int8")
    stand.step(2)
    assert stand.status.mode in {"full", "int8"}


def test_a_pin_outlasts_it() -> None:
    stand = make_stand()
    stand.pin("int8")
    stand.step()
    reconfigure(stand, lambda _: Decision("full"), "full", "disabled")
    stand.step(2)
    assert (stand.status.mode, stand.status.pinned) == ("int8", True)
    stand.unpin()
    stand.step(2)
    assert stand.status.mode == "full"


def test_healing_keeps_to_the_new_dwell_time() -> None:
    stand = make_stand(server={"max_running": 2})
    id_ = stand.post(prompt(100), 300)
    stand.step(2)
    reconfigure(stand, lambda _: None, "full", "int4", min_dwell_s=10 * STEP_S)
    check_rest(stand, id_, 10)
