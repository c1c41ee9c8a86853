"""What the routes are given: the engine, the model's card, and how text becomes tokens."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from adaptive_kv.engine.card import ModelCard
from adaptive_kv.engine.client import EngineClient
from adaptive_kv.events import EventLog, Recorded
from adaptive_kv.server.watch import Watch


class Prompts(Protocol):
    """Text to token ids and back; called in a thread, one call at a time.

    Encoding raises `RequestError` for what cannot be encoded.
    """

    def encode_text(self, text: str) -> Sequence[int]:
        """Token ids of a bare prompt."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> Sequence[int]:
        """Token ids of a chat up to where the assistant answers; each has `role`, `content`."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special ones included; also called for single tokens."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """The JSON documents that HTTP and MQTT share."""

    state: Callable[[], str]
    """The state of this moment."""
    event: Callable[[Recorded], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the server waits for others, in seconds."""

    send_s: float = 30.0
    """For a slow reader to take one chunk; then its request is cancelled."""
    body_s: float = 30.0
    """For a client to send its whole body."""
    keep_alive_s: float = 15.0
    """Longest silence on /events."""
    pin_s: float = 1.0
    """For the worker to show a new pin in its status."""


DEFAULT_PATIENCE = Patience()


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Everything the routes share."""

    client: EngineClient
    prompts: Prompts
    card: ModelCard
    events: EventLog
    documents: Documents
    watch: Watch
    patience: Patience = DEFAULT_PATIENCE
    budget_bytes: int | None = None
    """What the process may take at most; None where nothing is set."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server begins to shut down: endless streams end."""
    encoding: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while `prompts` works in its thread."""
