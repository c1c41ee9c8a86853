"""Clients that keep the service busy: long prompts, streamed answers, one after the other."""

import sysconfig
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from adaptive_kv.demo.client import Api, ApiError
from adaptive_kv.demo.timeline import Answer, Gap, Timeline

NUM_CLIENTS = 16
_NUM_CHARS = 6000
"""Of library source in a prompt: about one and a half thousand tokens."""
_MIN_TOKENS, _TOKEN_STEP, _NUM_STEPS = 192, 64, 4
_AFTER_ERROR_S = 2.0
_SOURCES = ("argparse", "dataclasses", "tarfile", "pathlib", "typing", "inspect", "zipfile")
_FACTS = (("falcon", "copper"), ("heron", "violet"), ("otter", "amber"), ("lynx", "maple"))


def make_prompt(number: int) -> str:
    """A code stated early, library source in between, and the code asked for at the end."""
    name, _ = _FACTS[number % len(_FACTS)]
    facts = "".join(f"Remember: the code of {n} is {c}.\n" for n, c in _FACTS)
    text = _library_text()
    start = number * 7919 % (len(text) - _NUM_CHARS)
    return f"{facts}{text[start : start + _NUM_CHARS]}\nWhat is the code of {name}?"


@cache
def _library_text() -> str:
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = [folder / f"{name}.py" for name in _SOURCES]
    packages = [folder / name / "__init__.py" for name in _SOURCES]
    found = [file for file in (*files, *packages) if file.is_file()]
    return "\n".join(file.read_text("utf-8") for file in found)


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds since the run began, and wall-clock time brought to the same scale."""

    start_s: float
    start_wall_s: float

    def now_s(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start_s

    def from_wall_s(self, time_s: float) -> float:
        """A moment given in seconds since the epoch."""
        return time_s - self.start_wall_s


class Load:
    """`NUM_CLIENTS` clients, each asking again as soon as it has its answer, until `stop`."""

    def __init__(self, api: Api, timeline: Timeline, clock: Clock) -> None:
        self._api = api
        self._timeline = timeline
        self._clock = clock
        self._numbers = count()
        self._is_over = threading.Event()
        self._pool = ThreadPoolExecutor(NUM_CLIENTS, thread_name_prefix="client")
        self._clients: list[Future[None]] = []

    def start(self) -> None:
        """Begin asking."""
        self._clients = [self._pool.submit(self._ask_on) for _ in range(NUM_CLIENTS)]

    def stop(self) -> None:
        """Ask nothing new; what is asked goes on."""
        self._is_over.set()

    @property
    def is_done(self) -> bool:
        """Whether all answers are there, after `stop`."""
        return all(client.done() for client in self._clients)

    def close(self) -> None:
        """Wait for the clients, whose service has answered or ended. Raises what they raised."""
        self.stop()
        self._pool.shutdown()
        for client in self._clients:
            client.result()

    def _ask_on(self) -> None:
        while not self._is_over.is_set():
            answer = self._ask(next(self._numbers))
            self._timeline.answers.append(answer)
            if answer.error is not None:
                self._is_over.wait(_AFTER_ERROR_S)

    def _ask(self, number: int) -> Answer:
        """One request from its start to its end."""
        start_s = self._clock.now_s()
        try:
            usage = self._listen(number)
        except ApiError as error:
            return Answer(start_s=start_s, end_s=self._clock.now_s(), error=str(error))
        return Answer(
            start_s=start_s,
            end_s=self._clock.now_s(),
            num_tokens=usage["completion_tokens"],
            tokens_by_mode=usage["adaptive_kv"]["tokens_by_mode"],
        )

    def _listen(self, number: int) -> dict[str, Any]:
        """The usage of a request; notes when its tokens come. Raises `ApiError`."""
        last_s: float | None = None
        usage: dict[str, Any] | None = None
        num_tokens = _MIN_TOKENS + number % _NUM_STEPS * _TOKEN_STEP
        chunks = self._api.chat(
            make_prompt(number),
            max_tokens=num_tokens,
            seed=number,
            ignore_eos=True,
            return_token_ids=True,
        )
        for chunk in chunks:
            usage = chunk.get("usage") or usage
            if any(choice.get("token_ids") for choice in chunk["choices"]):
                now_s = self._clock.now_s()
                if last_s is not None:
                    self._timeline.gaps.append(Gap(now_s, now_s - last_s))
                last_s = now_s
        if usage is None:
            raise ApiError("the answer ended before its usage came")
        return usage
