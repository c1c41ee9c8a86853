"""The files that `adaptive-kv policy new` writes: a policy that works, and its test."""

from string import Template

POLICY = Template('''\
"""$Name: say here when it acts, and why."""

from adaptive_kv import Decision, Reading


class $Name:
    """One rung down while memory is tight, one rung up while it is roomy."""

    def __init__(self, tight: float = 0.9, roomy: float = 0.6) -> None:
        self.tight, self.roomy = tight, roomy

    def __call__(self, now: Reading) -> Decision | None:
        """Decide; None is hold."""
        if now.mode_age_s < 2:
            return None  # the last change has not shown its effect yet
        place = now.ladder.index(now.mode) if now.mode in now.ladder else 0
        now_bytes = now.costs[now.mode].bytes
        smaller = [mode for mode in now.ladder[place:] if now.costs[mode].bytes < now_bytes]
        if now.pressure > self.tight and smaller:
            return Decision(smaller[0], reason="memory is tight")
        if now.pressure < self.roomy and place > 0:
            return Decision(now.ladder[place - 1], reason="memory is roomy")
        return None
''')

TEST = Template("""\
from $name import $Name

from adaptive_kv.testing import check_policy, make_reading

GIB = 2**30


def test_it_holds_while_memory_is_neither_tight_nor_roomy() -> None:
    assert $Name()(make_reading(total_bytes=8 * GIB, free_bytes=2 * GIB)) is None


def test_it_goes_down_a_rung_when_memory_is_tight() -> None:
    decision = $Name()(make_reading(mode="full", free_bytes=GIB // 2))
    assert decision is not None
    assert decision.mode == "int8"


def test_it_goes_up_a_rung_when_memory_is_roomy() -> None:
    decision = $Name()(make_reading(mode="int4", free_bytes=6 * GIB))
    assert decision is not None
    assert decision.mode == "int8"


def test_nothing_is_wrong_with_it() -> None:
    assert [problem for problem in check_policy($Name()) if not problem.is_advice] == []
""")


def class_name(name: str) -> str:
    """`night_watch` as a class is called: `NightWatch`."""
    return "".join(word.capitalize() for word in name.split("_"))
