"""What is wrong with a policy, in words: the suite behind `adaptive-kv policy check`."""

import inspect
import time
import traceback
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from statistics import median

from adaptive_kv.controller.flaps import Flaps
from adaptive_kv.policy import Decision, Policy, Reading
from adaptive_kv.testing.generating import make_readings
from adaptive_kv.testing.patience import TookTooLong, patience
from adaptive_kv.testing.world import LEVELS_BYTES, World

MAX_USUAL_S, MAX_WORST_S = 0.001, 0.1
"""How long an answer may take: it is asked for before every step."""

_PATIENCE_S = 3.0
_MAX_TOTAL_S = 30.0
_NUM_WORLD_STEPS = 600
_MAX_CHANGES = 6
_MAX_ERROR_CHARS = 200


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a policy. `kind` is one word; advice is no reason not to run it."""

    kind: str
    text: str
    is_advice: bool = False


def check_policy(
    policy: Policy,
    *,
    num_readings: int = 3000,
    timer: Callable[[], float] = time.perf_counter,
) -> list[Problem]:
    """Ask `policy` about thousands of readings and a few small worlds; what is wrong with it.

    Kinds: `raises`, `hangs` (known in the main thread only), `type`, `mutates`, `remembers`
    (though a function, or `is_stateless`), `slow`, `flaps`; as advice `ladder`, `allow`,
    `sequences`, `unsteady` and `passive`. Empty if all is well.
    """
    suite = _Suite(policy, timer)
    try:
        for reading in make_readings(num_readings):
            suite.show(reading)
            if sum(suite.took_s) > _MAX_TOTAL_S:
                break
        suite.judge_speed()
        if all(problem.is_advice for problem in suite.found):
            suite.live()
    except TookTooLong:
        suite.note("hangs", f"gave no answer within {_PATIENCE_S:g} s")
    return suite.problems()


class _Suite:
    """One policy under examination: what was found, how often, and how long answers took."""

    def __init__(self, policy: Policy, timer: Callable[[], float]) -> None:
        self._policy = policy
        self._timer = timer
        self.found: dict[Problem, int] = {}
        self._first: dict[str, Problem] = {}
        self.took_s: list[float] = []
        self._is_function = inspect.isfunction(policy)
        self._is_stateless = getattr(policy, "is_stateless", self._is_function)

    def note(self, kind: str, text: str, *, is_advice: bool = False) -> None:
        """Count a problem; of one kind only the first is told."""
        problem = self._first.setdefault(kind, Problem(kind, text, is_advice))
        self.found[problem] = self.found.get(problem, 0) + 1

    def problems(self) -> list[Problem]:
        """All that was found, the worst first."""
        told = [
            Problem(each.kind, each.text + (f" ({num} times)" if num > 1 else ""), each.is_advice)
            for each, num in self.found.items()
        ]
        return sorted(told, key=lambda problem: problem.is_advice)

    def show(self, reading: Reading) -> None:
        """Ask about one reading, and judge the answer and what became of the reading."""
        before, twin = repr(reading), deepcopy(reading)
        is_answer, answer = self._ask(reading)
        if repr(reading) != before:
            self.note("mutates", f"changed the reading that it was shown: {_moment(twin)}")
        is_good = is_answer and self._judge(answer, twin)
        if is_good and self._is_stateless and self._ask(twin) != (True, answer):
            self.note("remembers", self._remembers(reading))

    def judge_speed(self) -> None:
        """Say so if answers take long."""
        usual_s, worst_s = median(self.took_s), max(self.took_s)
        if usual_s > MAX_USUAL_S:
            self.note("slow", f"usually takes {usual_s * 1e3:.1f} ms, which every step would wait")
        elif sorted(self.took_s)[-len(self.took_s) // 100] > MAX_WORST_S:
            self.note("slow", f"takes up to {worst_s * 1e3:.0f} ms, which counts as a fault")

    def live(self) -> None:
        """Let it rule small worlds in which nothing happens but what it wants."""
        time_s = 1e6
        for others_bytes in LEVELS_BYTES:
            world, flaps = World(time_s, others_bytes), Flaps()
            for reading in world.readings(_NUM_WORLD_STEPS):
                _, answer = self._ask(reading)
                decision = answer if isinstance(answer, Decision) else None
                world.follow(decision)
                if decision and flaps.note(decision):
                    self.note("flaps", f"wants two things in turns: {_moment(reading)}")
            time_s = world.time_s
            self._judge_life(world)

    def _judge_life(self, world: World) -> None:
        if world.num_changes > _MAX_CHANGES:
            text = f"changed the mode {world.num_changes} times in a minute in which nothing else "
            text += "changed: leave a gap between what sends it down and what sends it up"
            self.note("unsteady", text, is_advice=True)
        if world.reading().memory.headroom_bytes < 0:
            text = f"left the floor broken for a minute, in {world.mode}, though a lower mode fits:"
            self.note("passive", f"{text} the guard will have to act", is_advice=True)

    def _ask(self, reading: Reading) -> tuple[bool, object]:
        """Whether there is an answer, and the answer."""
        started_s = self._timer()
        try:
            with patience(_PATIENCE_S):
                answer = self._policy(reading)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a policy may raise anything
            self.note("raises", f"raised {_told(error)}, shown {_moment(reading)}")
            return False, None
        finally:
            self.took_s.append(self._timer() - started_s)
        return True, answer

    def _judge(self, answer: object, reading: Reading) -> bool:
        """Whether the answer has the right type; advice about what it says."""
        if answer is None:
            return True
        if not isinstance(answer, Decision):
            self.note("type", f"answered a {type(answer).__name__}, not a Decision or None")
            return False
        if {type(answer.reason), type(answer.admit)} != {str, bool}:
            self.note("type", "answered a `reason` that is no str or an `admit` that is no bool")
            return False
        self._advise(answer, reading)
        return True

    def _advise(self, answer: Decision, reading: Reading) -> None:
        held = {sequence.mode for sequence in reading.sequences}
        known = {*reading.ladder, *reading.costs, *held}
        unknown = {answer.mode, *answer.sequences.values()} - known
        if unknown:
            text = f"answered {min(unknown)} where the ladder was {' > '.join(reading.ladder)}: "
            text += "a model's calibration may have struck a mode, choose from `now.ladder`"
            self.note("ladder", text, is_advice=True)
        if answer.sequences.keys() - {sequence.id for sequence in reading.sequences}:
            self.note("sequences", "named sequences that are not there", is_advice=True)
        for sequence in reading.sequences:
            mode = answer.sequences.get(sequence.id, sequence.mode)
            if mode != sequence.mode and not sequence.permits(mode):
                text = f"ordered {mode} for a sequence whose request permits only "
                text += f"{', '.join(sorted(sequence.allow or ()))}: ask `sequence.permits(mode)`"
                self.note("allow", text, is_advice=True)

    def _remembers(self, reading: Reading) -> str:
        claim = "it is a function" if self._is_function else "it says `is_stateless`"
        text = f"answered equal readings differently, though {claim}: {_moment(reading)}"
        return text + "; write a class to remember"


def _told(error: BaseException) -> str:
    text = "".join(traceback.format_exception_only(error)).strip()
    return text.removeprefix(f"{type(error).__module__}.")[:_MAX_ERROR_CHARS]


def _moment(reading: Reading) -> str:
    memory = reading.memory
    return (
        f"mode {reading.mode} of {' > '.join(reading.ladder)}, {memory.free_bytes} of "
        f"{memory.total_bytes} bytes free, floor {memory.floor_bytes}, "
        f"{len(reading.sequences)} sequences, seconds_to_floor {reading.seconds_to_floor}"
    )
