"""Server-sent events, and noticing that a client has gone."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack, aclosing
from typing import Any, TypeVar

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_log = structlog.get_logger(__name__)
_Result = TypeVar("_Result")


async def until_gone(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of `work`; its body must have been read from `receive` before.

    Raises `ClientDisconnect`, with `work` cancelled, as soon as the client goes away.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends `chunks` as they come; closes them and `source` when it ends, however it ends.

    A client that takes longer than `send_s` over one chunk is given up.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        send_s: float,
        source: AsyncGenerator[Any] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks
        self._send_s = send_s
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all, or as much as the client wants."""
        async with AsyncExitStack() as closing:
            for generator in (self._source, self._chunks):
                if generator is not None:
                    await closing.enter_async_context(aclosing(generator))
            try:
                await until_gone(receive, self._send_all(send))
            except ClientDisconnect:
                return
            except TimeoutError:
                _log.warning("slow_reader", path=scope["path"], waited_s=self._send_s)

    async def _send_all(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for chunk in self._chunks:
            if not chunk:
                continue
            async with asyncio.timeout(self._send_s):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
