"""Several policies over one trace, which is read once."""

from collections.abc import Sequence
from dataclasses import dataclass

from adaptive_kv.errors import TraceError
from adaptive_kv.loader import load_policy
from adaptive_kv.policy import Policy
from adaptive_kv.replay.course import Course
from adaptive_kv.replay.figures import Figures
from adaptive_kv.replay.record import Record
from adaptive_kv.replay.simulation import Simulation
from adaptive_kv.trace import Trace


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of one policy, or of the record itself; the course only where it was asked for."""

    figures: Figures
    course: Course | None = None


def replay(
    trace: Trace, policies: Sequence[tuple[str, Policy]], *, with_course: bool = False
) -> list[Replayed]:
    """The record first, then each of `policies` (a name to show, and who decides).

    Raises `TraceError` where the trace is damaged or empty.
    """
    courses = [Course() if with_course else None for _ in range(len(policies) + 1)]
    runs: list[Record | Simulation] = [Record(trace.header, courses[0])]
    for (name, policy), course in zip(policies, courses[1:], strict=True):
        fallback, _ = load_policy("ladder", {})
        runs.append(Simulation(trace.header, policy, name, fallback=fallback, course=course))
    num_moments = 0
    for moment in trace.moments():
        num_moments += 1
        for run in runs:
            run.step(moment)
    if num_moments < 2:
        raise TraceError(trace.files[0], "there are less than two moments in it")
    return [Replayed(run.figures(), course) for run, course in zip(runs, courses, strict=True)]
