"""`POST /v1/chat/completions` and `POST /v1/completions`."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from adaptive_kv.engine.mailbox import Delta, Finished
from adaptive_kv.errors import RequestError
from adaptive_kv.server.prepare import Prepared, prepare_chat, prepare_completion
from adaptive_kv.server.refusals import error_body, refuse
from adaptive_kv.server.schemas import ChatRequest, CompletionRequest, Sampled, validated
from adaptive_kv.server.service import Service
from adaptive_kv.server.stream import EventStream, until_gone
from adaptive_kv.server.wire import DONE, ChatWire, Choice, CompletionWire, Wire

Replies = AsyncGenerator[Delta | Finished]


async def read_json(request: HttpRequest, patience_s: float) -> Any:
    """The body as JSON, whatever its content type says. Raises `RequestError`."""
    try:
        async with asyncio.timeout(patience_s):
            body = await request.body()
    except TimeoutError:
        message = f"the body did not arrive within {patience_s:g} s"
        raise refuse(message, code="request_timeout", status=408) from None
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise refuse(f"the body is not valid JSON: {error}", code="invalid_json") from None


@dataclass(frozen=True, slots=True)
class Completions:
    """The two routes that generate."""

    service: Service

    async def chat(self, request: HttpRequest) -> Response:
        """Answer a conversation."""
        id_ = f"chatcmpl-{uuid.uuid4().hex}"
        with self._counting_refusals():
            asked = validated(ChatRequest, await self._body(request))
            prepared = await prepare_chat(asked, id_, self.service)
        wire = ChatWire(**self._shared(asked, id_, prepared))
        return await self._answer(request, wire, prepared, is_stream=bool(asked.stream))

    async def complete(self, request: HttpRequest) -> Response:
        """Continue one or many prompts."""
        id_ = f"cmpl-{uuid.uuid4().hex}"
        with self._counting_refusals():
            asked = validated(CompletionRequest, await self._body(request))
            prepared = await prepare_completion(asked, id_, self.service)
        wire = CompletionWire(**self._shared(asked, id_, prepared), echoes=prepared.echoes)
        return await self._answer(request, wire, prepared, is_stream=bool(asked.stream))

    @contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        """What is refused before the engine client sees it."""
        try:
            yield
        except RequestError:
            self.service.client.num_by_outcome["rejected"] += 1
            raise

    async def _body(self, request: HttpRequest) -> Any:
        return await read_json(request, self.service.patience.body_s)

    def _shared(self, asked: Sampled, id_: str, prepared: Prepared) -> dict[str, Any]:
        options = asked.stream_options
        return {
            "id": id_,
            "model": self.service.card.name,
            "created_s": int(time.time()),
            "decode": self.service.prompts.decode,
            "num_prompt_tokens": prepared.num_prompt_tokens,
            "shows_token_ids": bool(asked.return_token_ids),
            "shows_logprobs": asked.num_logprobs is not None,
            "ends_with_usage": bool(options and options.include_usage),
            "counts_along": bool(options and options.continuous_usage_stats),
        }

    async def _answer(
        self, request: HttpRequest, wire: Wire, prepared: Prepared, *, is_stream: bool
    ) -> Response:
        """Wait for the first reply before anything is sent: a refusal keeps its HTTP status."""
        replies = self.service.client.generate(*prepared.requests)
        choices = {each.id: Choice(index) for index, each in enumerate(prepared.requests)}
        if is_stream:
            first = await until_gone(request.receive, _first(replies))
            chunks = _chunks(wire, choices, first, replies)
            return EventStream(chunks, self.service.patience.send_s, source=replies)
        await until_gone(request.receive, _gather(choices, replies))
        return Response(wire.body(list(choices.values())), media_type="application/json")


async def _first(replies: Replies) -> Delta | Finished:
    return await anext(replies)


async def _gather(choices: Mapping[str, Choice], replies: Replies) -> None:
    async with aclosing(replies):
        async for reply in replies:
            choice = choices[reply.request_id]
            if isinstance(reply, Delta):
                choice.add(reply)
            else:
                choice.end(reply)


async def _chunks(
    wire: Wire, choices: Mapping[str, Choice], first: Delta | Finished, replies: Replies
) -> AsyncGenerator[bytes]:
    """Server-sent events up to `[DONE]`, or up to an error; some may be empty."""
    for choice in choices.values():
        yield wire.first(choice)
    num_tokens = 0
    try:
        async for reply in _chained(first, replies):
            choice = choices[reply.request_id]
            if isinstance(reply, Delta):
                num_tokens += len(reply.token_ids)
                yield wire.delta(choice, reply, num_tokens)
                choice.num_chars += len(reply.text)
            else:
                choice.end(reply)
                yield wire.last(choice, num_tokens)
    except RequestError as error:
        yield f"data: {error_body(error.refusal)}\n\n".encode()
        return
    if wire.ends_with_usage:
        yield wire.usage(list(choices.values()))
    yield DONE


async def _chained(first: Delta | Finished, replies: Replies) -> Replies:
    yield first
    async for reply in replies:
        yield reply
