"""Threads that share the work of one kernel call, and sleep while there is none.

    caller    | hand out | unit 0 | unit 2 | unit 3 | unit 5 | wait for whoever still works |
    helper         wakes    | unit 1          | unit 4           |

Units are taken one by one, from a counter in memory: whoever is late, because another program has
its core, takes fewer, and one that wakes when all is done takes none.
"""

import functools
import queue
import threading
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

Turns = npt.NDArray[np.int64]
"""Of one call: how many units were taken, and how many are finished."""


class Crew:
    """`num_helpers` threads beside the one that calls."""

    def __init__(self, num_helpers: int) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[Turns], None], Turns]] = queue.SimpleQueue()
        self._num_helpers = num_helpers
        for number in range(num_helpers):
            name = f"attention-{number}"
            threading.Thread(target=self._help, name=name, daemon=True).start()

    def run(self, work: Callable[[Turns], None], num_units: int) -> None:
        """Call `work` in all threads at once, until every unit is finished.

        It takes units until there are no more, and must let go of the interpreter meanwhile.
        """
        turns = np.zeros(2, np.int64)
        for _ in range(min(self._num_helpers, num_units - 1)):
            self._calls.put((work, turns))
        work(turns)
        while turns[1] < num_units:
            time.sleep(0)  # somebody is within a unit, which is a matter of microseconds

    def _help(self) -> None:
        while True:
            work, turns = self._calls.get()
            work(turns)


@functools.cache
def crew() -> Crew:
    """As many threads as torch computes with."""
    return Crew(torch.get_num_threads() - 1)
