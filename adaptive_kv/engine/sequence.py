"""One request being generated. Its token ids are the truth; its cache is disposable."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.engine.mailbox import Request, Usage
from adaptive_kv.engine.sampling import SamplingState
from adaptive_kv.engine.status import SequenceStatus
from adaptive_kv.engine.text import TextStream
from adaptive_kv.policy import CacheMode


class State(StrEnum):
    """waiting for its first step, running, or parked: dropped from memory until it fits again."""

    WAITING = "waiting"
    RUNNING = "running"
    PARKED = "parked"


@dataclass(slots=True, eq=False)
class Sequence:
    """What the engine knows of one request."""

    request: Request
    cache: SequenceCache
    sampling: SamplingState
    text: TextStream
    number: int
    """Order of arrival."""
    since_s: float
    """Monotonic time at which it began to wait; parked again without a new token, it still does."""
    tokens: list[int] = field(default_factory=list)
    """Prompt and output."""
    state: State = State.WAITING
    tokens_by_mode: Counter[CacheMode] = field(default_factory=Counter)
    num_cached: int = 0
    """Tokens of the prompt that need not be computed because others had been."""
    num_switches: int = 0
    num_when_parked: int = -1
    """Tokens generated when it was last parked; -1: never yet."""
    num_when_stuck: int = -1
    """Tokens generated when it last could not go on although nobody else ran."""
    num_parkings: int = 0
    num_in_vain: int = 0
    """How often it was parked again before it gained a token."""
    num_ends_when_parked: int = 0
    """Sequences that had run and ended when it was last parked."""
    too_little_bytes: float = 0
    """What pages could have, its own given back, when it was last parked for want of them."""
    fits_since_s: float | None = None
    """Since when there has been room for it, without a break; None: there is none."""
    was_always_exact: bool = True
    """Whether no lossy mode touched any of its tokens so far; what is healed stays touched."""
    shadow: SequenceCache | None = None
    """A fresh full cache under way; takes the place of `cache`, or is given back before anything
    else is."""

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def mode(self) -> CacheMode:
        """How its cache is kept."""
        return self.cache.mode

    @property
    def is_exact(self) -> bool:
        """Whether its next token will be as in a fresh full run of its tokens so far."""
        return self.cache.is_exact_up_to(len(self.tokens))

    @property
    def shadow_bytes(self) -> int:
        """Bytes of the shadow's pages."""
        return 0 if self.shadow is None else self.shadow.used_bytes

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def num_left(self) -> int:
        """Tokens that it may still generate."""
        return self.request.sampling.max_tokens - self.num_output

    @property
    def num_pending(self) -> int:
        """Tokens that must go through the model before the next one can be sampled."""
        return len(self.tokens) - self.cache.num_stored

    @property
    def is_stuck(self) -> bool:
        """Whether it did not fit even alone, and has gained no token since."""
        return self.num_output == self.num_when_stuck

    @property
    def urgency(self) -> tuple[bool, int, int]:
        """Sorts what comes first to the front: high priority, then early arrival.

        What is stuck lets others go first.
        """
        return self.is_stuck, -self.request.priority, self.number

    def permits(self, mode: CacheMode) -> bool:
        """Whether its request permits a mode."""
        return self.request.allow is None or mode in self.request.allow

    def drop(self) -> None:
        """Give back every page."""
        self.drop_shadow()
        self.cache.drop()

    def retire(self) -> None:
        """Give back every page, but let others begin with what may be retained."""
        self.drop_shadow()
        self.cache.retire()

    def drop_shadow(self) -> None:
        """Give back what was recomputed so far."""
        if self.shadow is not None:
            self.shadow.drop()
            self.shadow = None

    def status(self) -> SequenceStatus:
        """What publishers show."""
        return SequenceStatus(
            id=self.id,
            state=self.state.value,
            mode=self.mode,
            num_tokens=len(self.tokens),
            cache_bytes=self.cache.used_bytes + self.shadow_bytes,
            exact=self.is_exact,
        )

    def usage(self) -> Usage:
        """What it cost."""
        return Usage(
            num_prompt_tokens=len(self.request.prompt_ids),
            num_output_tokens=self.num_output,
            num_cached_tokens=self.num_cached,
            tokens_by_mode=dict(self.tokens_by_mode),
            switches=self.num_switches,
            exact=self.was_always_exact,
        )
