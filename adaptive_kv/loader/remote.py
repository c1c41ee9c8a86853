"""A policy in a process of its own: it may spin, leak or crash, and nobody waits for it."""

import json
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptive_kv.controller.asking import Fault
from adaptive_kv.errors import PolicyError
from adaptive_kv.loader.process import Child, ChildError
from adaptive_kv.loader.wire import decision_from_values, reading_to_json
from adaptive_kv.policy import Reading

_LOAD_S = 20.0
_TAKE_S = 5.0
_STEADY_S = 60.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 30.0
_MAX_NEWS = 16
_MAX_SILENT_FAULTS = 16


class RemotePolicy:
    """A `LatePolicy` that answers from a child process.

    The caller of `exchange` leaves the newest reading and takes what news there are; a thread of
    this object's own talks to the child, which is asked again when it has answered: readings
    that come meanwhile replace each other. Silence is a fault after `deadline_s`, and again each
    time that it has doubled. A child that ends is a fault too, and is started anew after a pause
    that doubles from one time to the next. Raises `PolicyError` for options that JSON has not.
    """

    def __init__(
        self, policy: str, options: Mapping[str, Any], *, folder: Path, deadline_s: float
    ) -> None:
        _check_options(policy, options)
        self._policy, self._options, self._folder = policy, options, folder
        self._deadline_s = deadline_s
        self._changed = threading.Condition()
        # All below are read and written with `_changed` held.
        self._question: Reading | None = None
        self._news: deque[object] = deque(maxlen=_MAX_NEWS)
        self._child: Child | None = None
        self._is_closed = False
        self._name: str | None = None
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)

    def start(self) -> str:
        """Start the child and wait until its policy is loaded; the name to show for it.

        Raises `PolicyError` that says why it cannot be loaded.
        """
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._name is not None or self._news)
            if self._name is not None:
                return self._name
            fault = self._news[0]
        self.close()
        assert isinstance(fault, Fault)
        raise PolicyError(self._policy, fault.text)

    def exchange(self, reading: Reading) -> Sequence[object]:
        """Leave the newest reading, take the news; waits for nothing."""
        with self._changed:
            self._question = reading
            news = tuple(self._news)
            self._news.clear()
            self._changed.notify_all()
        return news

    def close(self) -> None:
        """Answer no more; the child is ended soon after. Waits for nothing."""
        with self._changed:
            self._is_closed = True
            if self._child is not None:
                self._child.hang_up()
            self._changed.notify_all()

    def join(self, timeout_s: float) -> bool:
        """After `close`: wait for the child to be gone; whether it is."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._is_closed:
            started_s = time.monotonic()
            try:
                self._live()
            except ChildError as error:
                self._tell(Fault(str(error)))
            if time.monotonic() - started_s > _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _live(self) -> None:
        """One life of the child."""
        with Child(self._policy, self._options, self._folder) as child:
            with self._changed:
                if self._is_closed:
                    return
                self._child = child
            try:
                self._converse(child)
            finally:
                with self._changed:
                    self._child = None

    def _converse(self, child: Child) -> None:
        loaded = child.load(_LOAD_S)
        if "ready" not in loaded:
            raise ChildError(str(loaded.get("refused")))
        with self._changed:
            self._name = str(loaded["ready"])
            self._changed.notify_all()
        while (reading := self._next_question()) is not None:
            child.send(reading_to_json(reading), _TAKE_S)
            self._tell(_news(self._await_answer(child)))

    def _next_question(self) -> Reading | None:
        """The newest reading, waited for; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._question is not None)
            reading, self._question = self._question, None
            return None if self._is_closed else reading

    def _await_answer(self, child: Child) -> dict[str, Any]:
        """The answer, however late; every silence of twice the length is told."""
        silent_s, next_s = 0.0, self._deadline_s
        for _ in range(_MAX_SILENT_FAULTS):
            answer = child.receive(next_s - silent_s)
            if answer is not None:
                return answer
            self._tell(Fault(f"is silent for {next_s:.3g} s, its deadline is {self._deadline_s:g}"))
            silent_s, next_s = next_s, 2 * next_s
        raise ChildError("was silent for too long")

    def _tell(self, news: object) -> None:
        """Put `news` where `exchange` finds them, unless it is too late for any."""
        with self._changed:
            if not self._is_closed:
                self._news.append(news)
                self._changed.notify_all()


def _check_options(policy: str, options: Mapping[str, Any]) -> None:
    try:
        json.dumps(dict(options))
    except TypeError as error:
        raise PolicyError(policy, f"its options cannot be handed over: {error}") from None


def _news(answer: dict[str, Any]) -> object:
    """The decision, None or fault that an answer stands for."""
    if "decision" not in answer:
        return Fault(str(answer.get("fault")))
    values = answer["decision"]
    try:
        return None if values is None else decision_from_values(values)
    except (AttributeError, TypeError, ValueError) as error:
        return Fault(f"{type(error).__name__}: {error}")
