"""What lies between a publisher and its broker, to be cut while everybody else stays connected."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from broker import PATIENT_S, Mosquitto

_MQTT_5 = b"\0\4MQTT\5"


class Wire:
    """Forwards bytes to a broker. `old_answer` makes it a broker that knows only MQTT 3.1.1."""

    def __init__(self, broker: Mosquitto, old_answer: bytes | None = None) -> None:
        self._broker = broker
        self._old_answer = old_answer
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="wire")

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(PATIENT_S)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENT_S)

    def cut(self) -> None:
        """Both sides lose their connection, and no new one comes about."""
        self._is_cut = True
        self._loop.call_soon_threadsafe(self._close_all)

    def mend(self) -> None:
        self._is_cut = False

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        self._close_all()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(OSError):
            first = await reader.read(4096)
            if self._old_answer is not None and _MQTT_5 in first:
                writer.write(self._old_answer)
            elif not self._is_cut:
                await self._forward(first, reader, writer)
        writer.close()

    async def _forward(
        self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self._broker.port)
        self._writers.add(to_broker)
        to_broker.write(first)
        await asyncio.gather(_copy(reader, to_broker), _copy(from_broker, writer))

    def _close_all(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers.clear()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(4096):
            writer.write(chunk)
    writer.close()


@contextmanager
def wired(broker: Mosquitto, old_answer: bytes | None = None) -> Iterator[Wire]:
    """A wire to `broker`, gone at the end."""
    wire = Wire(broker, old_answer)
    wire.start()
    try:
        yield wire
    finally:
        wire.end()
