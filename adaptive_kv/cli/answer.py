"""One prompt through an engine of this process, its answer to stdout."""

import asyncio
import sys
from contextlib import aclosing
from dataclasses import replace

from adaptive_kv.cli.progress import shown_progress
from adaptive_kv.config import Settings
from adaptive_kv.engine.client import EngineClient
from adaptive_kv.engine.mailbox import Delta, Request, SamplingParams, Usage
from adaptive_kv.engine.service import Engine, start_engine
from adaptive_kv.errors import Refusal, RequestError
from adaptive_kv.events import EventLog
from adaptive_kv.policy import CacheMode

_POLL_S = 0.01


def answer(
    settings: Settings,
    prompt: str,
    sampling: SamplingParams,
    pinned: CacheMode | None,
    *,
    as_chat: bool,
) -> str:
    """Write the answer as it comes; returns a line that says what it cost.

    Raises `RequestError` where the prompt cannot be served, `ConfigError`, `ModelError` or
    `PolicyError` where the engine cannot start.
    """
    with shown_progress() as tell:
        engine = start_engine(settings, EventLog(), tell, warms_up=False)
    try:
        request = _request(engine, prompt, sampling, as_chat=as_chat)
        return _summary(asyncio.run(_stream(engine, request, pinned)))
    finally:
        engine.stop()


def _request(engine: Engine, prompt: str, sampling: SamplingParams, *, as_chat: bool) -> Request:
    if as_chat:
        ids = engine.prompts.encode_chat([{"role": "user", "content": prompt}])
    else:
        ids = engine.prompts.encode_text(prompt)
    num_free = engine.card.max_context - len(ids)
    if not ids or num_free < 1:
        message = f"the prompt has {len(ids)} tokens; 1 to {engine.card.max_context - 1} fit"
        raise RequestError(Refusal(message, code="context_length_exceeded"))
    sampling = replace(sampling, max_tokens=min(sampling.max_tokens, num_free))
    return Request(id="generate", prompt_ids=tuple(ids), sampling=sampling)


async def _stream(engine: Engine, request: Request, pinned: CacheMode | None) -> Usage:
    client = EngineClient(engine.mailbox, max_in_flight=1)
    if pinned is not None:
        client.pin(pinned)
    await _ready(engine, client)
    async with aclosing(client.generate(request)) as replies:
        async for reply in replies:
            if isinstance(reply, Delta):
                sys.stdout.write(reply.text)
                sys.stdout.flush()
            else:
                sys.stdout.write("\n")
                return reply.usage
    raise AssertionError("a request ends with Finished, or generate raises")


async def _ready(engine: Engine, client: EngineClient) -> None:
    """Wait for the worker's first step, which shows that it takes requests."""
    while client.why_not_ready() is not None and engine.thread.is_alive():
        await asyncio.sleep(_POLL_S)


def _summary(usage: Usage) -> str:
    modes = ", ".join(f"{mode} {num_tokens}" for mode, num_tokens in usage.tokens_by_mode.items())
    loss = "exact" if usage.exact else "not exact"
    return f"{usage.num_output_tokens} tokens ({modes}), {usage.switches} switches, {loss}"
