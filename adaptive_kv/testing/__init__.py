"""PUBLIC: what a policy author's tests need. Standard library only, no model and no GPU."""

from adaptive_kv.testing.checking import Problem, check_policy
from adaptive_kv.testing.generating import make_readings
from adaptive_kv.testing.readings import DEFAULT_LADDER, make_costs, make_reading, make_sequence

__all__ = [
    "DEFAULT_LADDER",
    "Problem",
    "check_policy",
    "make_costs",
    "make_reading",
    "make_readings",
    "make_sequence",
]
