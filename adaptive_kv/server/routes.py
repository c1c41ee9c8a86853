"""Everything that does not generate: models, health, truth, events, metrics, the pin."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from adaptive_kv.errors import Refusal
from adaptive_kv.in_loop import in_loop
from adaptive_kv.policy import CacheMode
from adaptive_kv.server.completions import read_json
from adaptive_kv.server.dashboard import Page
from adaptive_kv.server.refusals import error_response, refuse
from adaptive_kv.server.schemas import ModeRequest, validated
from adaptive_kv.server.service import Service
from adaptive_kv.server.stream import EventStream


@dataclass(frozen=True, slots=True)
class Routes:
    """The endpoints; each takes a Starlette request and answers it."""

    service: Service
    registry: CollectorRegistry
    dashboard: Page

    async def models(self, _request: Request) -> Response:
        """The one model."""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """The model by its name, which may contain slashes."""
        name = request.path_params["name"]
        if name != self.service.card.name:
            message = f"no model {name!r} here; this service has {self.service.card.name!r}"
            raise refuse(message, param="model", code="model_not_found", status=404)
        return _json(self._model())

    async def healthz(self, _request: Request) -> Response:
        """Whether the process should live on: the worker progresses, or has nothing to do."""
        if self.service.client.is_alive():
            return _json({"status": "ok"})
        message = "the worker makes no progress"
        return error_response(Refusal(message, 503, "server_error", code="stalled"))

    async def readyz(self, _request: Request) -> Response:
        """Whether a request would be taken now."""
        why_not = self.service.client.why_not_ready() or self._stalled()
        return _json({"status": "ready"}) if why_not is None else error_response(why_not)

    async def status(self, _request: Request) -> Response:
        """The state document."""
        return Response(self.service.documents.state(), media_type="application/json")

    async def events(self, request: Request) -> Response:
        """Event documents from now on, or after `Last-Event-ID` or `?since=`."""
        if request.method == "HEAD":
            return Response(media_type=EventStream.media_type)
        stream = self._follow(_resume_from(request, self.service.events.last_seq))
        return EventStream(stream, self.service.patience.send_s)

    async def metrics(self, _request: Request) -> Response:
        """For Prometheus."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def mode(self, request: Request) -> Response:
        """`PUT` pins, `DELETE` returns to the policy; both answer the pin that results."""
        mode = await self._asked_mode(request) if request.method == "PUT" else None
        client = self.service.client
        client.unpin() if mode is None else client.pin(mode)
        await client.until_pinned(mode, self.service.patience.pin_s)
        return _json({"pinned": mode is not None, "mode": mode, "active_mode": client.status.mode})

    async def page(self, _request: Request) -> Response:
        """For people."""
        return Response(self.dashboard.content, headers=dict(self.dashboard.headers))

    async def history(self, _request: Request) -> Response:
        """What the page shows of the time before it was opened."""
        service = self.service
        text = service.watch.history.to_json(
            model=service.card.name, budget_bytes=service.budget_bytes
        )
        return Response(text, media_type="application/json")

    async def _asked_mode(self, request: Request) -> CacheMode:
        body = await read_json(request, self.service.patience.body_s)
        mode = validated(ModeRequest, body).mode
        if not self.service.card.supports(mode):
            message = f"{mode} cannot be used with {self.service.card.name!r}"
            raise refuse(message, param="mode", code="mode_not_supported")
        return mode

    async def _follow(self, seq: int) -> AsyncGenerator[bytes]:
        """Events after `seq` as they happen, until the server closes."""
        news = asyncio.Event()
        stop = self.service.events.listen(in_loop(news.set))
        closed = asyncio.create_task(self.service.closing.wait())
        closed.add_done_callback(lambda _: news.set())
        try:
            while not closed.done():
                news.clear()
                records, num_missed = self.service.events.since(seq)
                if num_missed:
                    yield f": {num_missed} events are no longer kept\n\n".encode()
                for record in records:
                    document = self.service.documents.event(record)
                    yield f"id: {record.seq}\ndata: {document}\n\n".encode()
                    seq = record.seq
                if not await _within(news, self.service.patience.keep_alive_s):
                    yield b": keep-alive\n\n"
        finally:
            stop()
            closed.cancel()

    def _model(self) -> dict[str, Any]:
        card = self.service.card
        return {
            "id": card.name,
            "object": "model",
            "created": card.created_s,
            "owned_by": "adaptive-kv",
            "max_model_len": card.max_context,
        }

    def _stalled(self) -> Refusal | None:
        if self.service.client.is_alive():
            return None
        message = "the worker makes no progress"
        return Refusal(message, 503, "server_error", code="stalled", retry_after_s=5.0)


async def _within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False


def _resume_from(request: Request, last_seq: int) -> int:
    """The `seq` to go on after; one from before a restart means everything that is kept."""
    asked = request.headers.get("last-event-id", request.query_params.get("since"))
    if asked is None:
        return last_seq
    if not re.fullmatch(r"[0-9]{1,18}", asked):
        raise refuse("an event's id is a whole number", param="since", code="invalid_value")
    return int(asked) if int(asked) <= last_seq else 0


def _json(document: object) -> Response:
    return Response(json.dumps(document), media_type="application/json")
