"""Asks the sensors on a thread of its own, so that nobody else ever waits for a driver."""

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Self

from adaptive_kv.errors import SensorError
from adaptive_kv.events import EventLog, SensorFault, SensorRecovered
from adaptive_kv.sensors.base import DeviceSample, MemorySample, Sensor, Telemetry

MAX_FAILURES = 3
"""After so many failures in a row the next sensor of the chain is asked."""

_RETRY_S = 1.0
_HISTORY_S = 4.0
_CLOSE_S = 2.0


class SensorPoller:
    """Keeps the latest sample of the best sensor that answers.

    While none answers the last sample stays and ages: readers compare its `time_s` with their
    own monotonic clock. Each outage of a sensor is one `SensorFault`, its end one
    `SensorRecovered`. Construction reads once and raises `SensorError` if no sensor answers;
    `start` begins polling. A sensor that hangs in its driver hangs this one thread, no second one
    is made: what it was last told grows old.

    `telemetry` is asked on the same thread, after memory and each at its own pace; what it does
    not know is None in `device`, and no fault.
    """

    def __init__(
        self,
        sensors: Sequence[Sensor],
        *,
        poll_hz: float,
        events: EventLog,
        telemetry: Sequence[Telemetry] = (),
    ) -> None:
        self._sensors = tuple(sensors)
        self._telemetry = tuple(telemetry)
        self._due_s = dict.fromkeys(range(len(self._telemetry)), float("-inf"))
        self._device = DeviceSample()
        self._period_s = 1 / poll_hz
        self._polls_per_retry = max(1, round(_RETRY_S * poll_hz))
        self._max_samples = max(8, round(_HISTORY_S * poll_hz))
        self._events = events
        self._errors: dict[int, SensorError] = {}
        self._history: tuple[MemorySample, ...] = ()
        self._current = 0
        self._num_failures = 0
        self._num_polls = 0
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sensor", daemon=True)
        if not self._take_first_of(range(len(self._sensors))):
            raise _none_answers(tuple(self._errors.values()))

    def start(self) -> Self:
        """Begin polling."""
        self._thread.start()
        return self

    def latest(self) -> MemorySample:
        """The newest sample, however old; never waits."""
        return self._history[-1]

    def history(self) -> tuple[MemorySample, ...]:
        """Samples of the last seconds, oldest first; never waits."""
        return self._history

    def device(self) -> DeviceSample:
        """What was last known of the device besides its memory; never waits."""
        return self._device

    def close(self) -> None:
        """Stop polling and close the sensors; does not wait for one that hangs in its driver."""
        self._is_closing.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)
        if not self._thread.is_alive():
            for sensor in self._sensors:
                sensor.close()
            for telemetry in self._telemetry:
                telemetry.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def poll(self) -> None:
        """One round: the sensor in charge, now and then better ones, and what else is due."""
        self._poll_memory()
        self._poll_device(time.monotonic())

    def _poll_memory(self) -> None:
        self._num_polls += 1
        if self._current > 0 and self._num_polls % self._polls_per_retry == 0:
            self._take_first_of(range(self._current))
        if self._ask(self._current):
            self._num_failures = 0
            return
        self._num_failures += 1
        if self._num_failures >= MAX_FAILURES:
            self._take_first_of(i for i in range(len(self._sensors)) if i != self._current)

    def _poll_device(self, now_s: float) -> None:
        for index, due_s in tuple(self._due_s.items()):
            if now_s < due_s:
                continue
            telemetry = self._telemetry[index]
            self._due_s[index] = now_s + telemetry.period_s
            try:
                self._device = telemetry.read(self._device)
            except Exception as error:  # noqa: BLE001 - nor may a bug here; it is not asked again
                self._events.append(SensorFault(source=telemetry.name, error=repr(error)))
                del self._due_s[index]

    def _run(self) -> None:
        while not self._is_closing.wait(self._period_s):
            self.poll()

    def _take_first_of(self, indices: Iterable[int]) -> bool:
        """Put the first sensor that answers in charge; False if none does."""
        for index in indices:
            if self._ask(index):
                self._current = index
                self._num_failures = 0
                return True
        return False

    def _ask(self, index: int) -> bool:
        sensor = self._sensors[index]
        try:
            sample = sensor.read()
        except SensorError as fault:
            self._note_fault(index, fault)
            return False
        except Exception as bug:  # noqa: BLE001 - a bug in one sensor must not blind the service
            self._note_fault(index, SensorError(sensor.name, repr(bug)))
            return False
        self._history = (*self._history, sample)[-self._max_samples :]
        if (error := self._errors.pop(index, None)) is not None:
            self._events.append(SensorRecovered(source=error.source))
        return True

    def _note_fault(self, index: int, error: SensorError) -> None:
        if index not in self._errors:
            self._events.append(SensorFault(source=error.source, error=error.why))
        self._errors[index] = error


def _none_answers(errors: tuple[SensorError, ...]) -> SensorError:
    if len(errors) == 1:
        return errors[0]
    why = "; ".join(f"{error.source} {error.why}" for error in errors)
    return SensorError("auto", f"no source answers: {why}")
