import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count

import pytest

from adaptive_kv.loader import list_policies, load_policy
from adaptive_kv.policy import CacheMode, Decision, Policy, Reading
from adaptive_kv.testing import Problem, check_policy
from adaptive_kv.testing.patience import TookTooLong, patience


def kinds(policy: Callable[[Reading], object], num: int = 400) -> dict[str, Problem]:
    problems = check_policy(policy, num_readings=num, timer=lambda: 0.0)  # type: ignore[arg-type]
    return {problem.kind: problem for problem in problems}


@pytest.mark.parametrize("name", [found.name for found in list_policies()])
def test_nothing_is_wrong_with_what_comes_with_us(name: str) -> None:
    """And only `fixed`, which is meant to, does nothing about anything."""
    found = kinds(load_policy(name, {})[0])
    assert all(problem.is_advice for problem in found.values())
    assert set(found) == ({"ladder", "passive"} if name == "fixed" else set())


class Half:
    """Half of the time something else."""

    def __init__(self) -> None:
        self.numbers = count()

    def is_odd(self) -> bool:
        return next(self.numbers) % 2 == 1


class Twins(Half):
    is_stateless = True

    def __call__(self, _now: Reading) -> Decision | None:
        return Decision("full") if self.is_odd() else None


class Flapping(Half):
    def __call__(self, now: Reading) -> Decision | None:
        return Decision(now.ladder[0] if self.is_odd() else now.ladder[-1])


def spoil_costs(now: Reading) -> None:
    now.costs.pop(now.mode)  # type: ignore[attr-defined]


def spoil_mode(now: Reading) -> None:
    object.__setattr__(now, "mode", CacheMode("int8"))


def hide_bytes(now: Reading) -> Decision:
    return Decision("full", sequences={sequence.id: "int4" for sequence in now.sequences})


@pytest.mark.parametrize(
    ("policy", "kind", "words"),
    [
        (lambda now: 1 / now.memory.total_bytes, "raises", "ZeroDivisionError"),
        (lambda now: Decision("int5"), "raises", "unknown cache mode 'int5'"),
        (lambda now: sys.exit(3), "raises", "SystemExit"),
        (lambda now: float("nan"), "type", "a float, not a Decision"),
        (lambda now: "full", "type", "a str, not a Decision"),
        (lambda now: Decision("full", admit=float("nan")), "type", "no bool"),  # type: ignore[arg-type]
        (lambda now: Decision("full", reason=3), "type", "no str"),  # type: ignore[arg-type]
        (spoil_costs, "mutates", "changed the reading"),
        (spoil_mode, "mutates", "changed the reading"),
        (Twins(), "remembers", "is_stateless"),
        (Flapping(), "flaps", "in turns"),
        (Flapping(), "unsteady", "leave a gap"),
        (lambda now: Decision("window:77"), "ladder", "answered window:77 where the ladder was"),
        (hide_bytes, "allow", "permits only full"),
        (lambda now: Decision("full", sequences={"x": "full"}), "sequences", "not there"),
        (lambda now: None, "passive", "left the floor broken for a minute, in full"),
    ],
)
def test_what_is_wrong_is_said_in_words(
    policy: Callable[[Reading], object], kind: str, words: str
) -> None:
    assert words in kinds(policy)[kind].text


def test_a_function_that_remembers_should_be_a_class() -> None:
    numbers = count()

    def forgetful(_now: Reading) -> Decision | None:
        return Decision("full") if next(numbers) % 2 else None

    assert "it is a function" in kinds(forgetful)["remembers"].text


def test_what_is_wrong_goes_before_advice_and_is_told_once() -> None:
    def policy(now: Reading) -> Decision | None:
        if not now.sequences:
            raise LookupError("nobody")
        return Decision("window:77")

    problems = check_policy(policy, num_readings=400)
    assert [problem.kind for problem in problems] == ["raises", "ladder"]
    assert "times)" in problems[0].text
    assert "0 sequences" in problems[0].text
    assert problems[0].is_advice is False


def taking(seconds: Iterator[float]) -> Callable[[], float]:
    """A timer by which answers take these seconds."""
    now_s, is_end = 0.0, False

    def timer() -> float:
        nonlocal now_s, is_end
        now_s += next(seconds) if is_end else 0.0
        is_end = not is_end
        return now_s

    return timer


def test_slow_answers_are_told() -> None:
    steady = check_policy(lambda _: None, num_readings=40, timer=taking(iter([0.002] * 9999)))
    assert "usually takes 2.0 ms" in next(p.text for p in steady if p.kind == "slow")
    pauses = taking(0.2 if number % 20 == 0 else 1e-5 for number in count())
    rare = check_policy(lambda _: None, num_readings=400, timer=pauses)
    assert "takes up to 200 ms" in next(p.text for p in rare if p.kind == "slow")
    assert "slow" not in kinds(lambda _: None)


def test_one_that_is_far_too_slow_is_not_asked_for_ever() -> None:
    asked = count()

    def policy(_now: Reading) -> None:
        next(asked)

    problems = check_policy(policy, timer=taking(iter([10.0] * 9999)), num_readings=3000)
    assert "slow" in {problem.kind for problem in problems}


def test_one_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptive_kv.testing.checking._PATIENCE_S", 0.05)

    def spins(_now: Reading) -> Decision | None:
        while True:
            with suppress(Exception):
                time.sleep(1000)

    assert "no answer within 0.05 s" in kinds(spins)["hangs"].text


def test_patience_leaves_the_alarm_as_it_was() -> None:
    with pytest.raises(TookTooLong), patience(0.01):
        time.sleep(1000)
    with patience(1000):
        pass
    policy: Policy = lambda _: None  # noqa: E731 - one line says it
    others: list[list[Problem]] = []
    thread = threading.Thread(target=lambda: others.append(check_policy(policy, num_readings=10)))
    thread.start()
    thread.join()
    assert [problem.kind for problem in others[0]] == ["passive"]


def test_a_policy_may_want_what_only_the_costs_have() -> None:
    def policy(now: Reading) -> Decision | None:
        return Decision(next(iter(now.costs)))

    assert "ladder" not in kinds(policy)
