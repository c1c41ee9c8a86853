"""The only crossing between the worker thread and everyone else: plain frozen dataclasses.

    front (asyncio)  -- Mail -->     worker
    front (asyncio)  <-- Reply --    worker, all replies of one step at once
    front (asyncio)  <-- Status --   worker, latest value

Everything that crosses is plain data, so that the mailbox can become a pipe between processes; but
for a policy, which is started where it may take its time and then handed over.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from adaptive_kv.controller.asking import AnyPolicy
from adaptive_kv.engine.status import Status
from adaptive_kv.errors import Refusal
from adaptive_kv.policy import CacheMode


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen, and when to stop. Defaults are OpenAI's."""

    max_tokens: int = 256
    min_tokens: int = 0
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """How many alternatives to report per token; 0 reports the chosen one only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to be continued. `prompt_ids` has at least one token id."""

    id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    allow: frozenset[CacheMode] | None = None
    """The only modes that may be used for it; None permits all."""
    priority: int = 0
    """Higher runs first and is parked last."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for this request any more; forget it within one step."""

    request_id: str


@dataclass(frozen=True, slots=True)
class PinMode:
    """Hold this mode whatever the policy says (the guard still holds)."""

    mode: CacheMode


@dataclass(frozen=True, slots=True)
class UnpinMode:
    """Return to the policy."""


@dataclass(frozen=True, slots=True)
class BeginDrain:
    """Take no more requests; finish those that run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconfigure:
    """Work with another policy, ladder and floor from the next step on."""

    policy: AnyPolicy
    """Started, and nobody else's."""
    policy_name: str
    ladder: tuple[CacheMode, ...]
    """At least one of them must be supported by the model."""
    min_dwell_s: float
    deadline_s: float
    floor_bytes: int


Mail = Request | Cancel | PinMode | UnpinMode | BeginDrain | Reconfigure


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """The chosen token with its log-probability and the best alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one step added to a request: complete characters and the token ids behind them.

    Text lags ids by what may still become another character or a stop string.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a finished request cost, and in which modes it was served."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    """Of the prompt: found in the cache, so that nothing was computed for them."""
    tokens_by_mode: Mapping[CacheMode, int]
    switches: int
    exact: bool
    """True only if no lossy mode touched any token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last reply of a request that ended well; `reason` is `stop` or `length`."""

    request_id: str
    reason: str
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The last reply of a request that could not be served."""

    request_id: str
    refusal: Refusal


Reply = Delta | Finished | Failed


class Mailbox:
    """Mail one way, replies and status the other. Nothing here ever blocks the worker."""

    def __init__(self, status: Status) -> None:
        self._mail: deque[Mail] = deque()
        self._has_mail = threading.Condition()
        self._deliver: Callable[[Sequence[Reply]], None] = _drop
        self.status = status
        """The latest truth, written by the worker only; reading it is one atomic load."""

    def post(self, mail: Mail) -> None:
        """Hand something to the worker; any thread."""
        with self._has_mail:
            self._mail.append(mail)
            self._has_mail.notify()

    def collect(self, timeout_s: float = 0.0) -> list[Mail]:
        """Worker only: all mail, oldest first; waits up to `timeout_s` for some."""
        with self._has_mail:
            if not self._mail and timeout_s > 0:
                self._has_mail.wait(timeout_s)
            mail = list(self._mail)
            self._mail.clear()
        return mail

    def on_replies(self, deliver: Callable[[Sequence[Reply]], None]) -> None:
        """Set who takes replies; called in the worker thread, must not block."""
        self._deliver = deliver

    def reply(self, replies: Sequence[Reply]) -> None:
        """Worker only: the replies of one step, in order."""
        if replies:
            self._deliver(replies)


def _drop(replies: Sequence[Reply]) -> None:
    """Nobody listens yet."""
