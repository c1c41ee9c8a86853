"""A worker that follows a script but speaks over the real mailbox, and a real server before it."""

import asyncio
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import statuses

from adaptive_kv.config import ServerSettings
from adaptive_kv.engine.card import ModelCard
from adaptive_kv.engine.client import EngineClient
from adaptive_kv.engine.mailbox import (
    BeginDrain,
    Cancel,
    Delta,
    Failed,
    Finished,
    Mail,
    Mailbox,
    PinMode,
    Reply,
    Request,
    TokenLogprob,
    UnpinMode,
    Usage,
)
from adaptive_kv.engine.status import Health, SequenceStatus, Status
from adaptive_kv.engine.tally import Tally
from adaptive_kv.errors import Refusal, RequestError
from adaptive_kv.events import EventLog, Recorded
from adaptive_kv.policy import CacheMode, Latency, Load
from adaptive_kv.server.app import make_app
from adaptive_kv.server.run import serve_http
from adaptive_kv.server.service import Documents, Patience

FULL, INT4 = CacheMode("full"), CacheMode("int4")
PIECES = ("Hello", ", wörld", "!")
TEXT = "".join(PIECES)
PATIENT_S = 20.0
MAX_CONTEXT = 512

Script = Callable[[Request], Iterator[Reply | None]]


def make_status(**changes: Any) -> Status:
    """A healthy, idle status of this moment."""
    idle: dict[str, Any] = {
        "mode_age_s": 0.0,
        "latency": Latency(token_s=None, p50_s=None, p95_s=None),
        "load": Load(running=0, waiting=0, tokens_per_s=0.0),
        "costs": {},
        "num_sequences_by_mode": {},
        "sequences": (),
    }
    return statuses.make_status(**(idle | changes))


def make_usage(request: Request, num_tokens: int) -> Usage:
    """One token in int4, the others in full."""
    return Usage(
        num_prompt_tokens=len(request.prompt_ids),
        num_cached_tokens=len(request.prompt_ids) // 2,
        num_output_tokens=num_tokens,
        tokens_by_mode={FULL: num_tokens - 1, INT4: 1},
        switches=1,
        exact=False,
    )


def say(request: Request) -> Iterator[Reply]:
    """Three pieces, then the end."""
    for number, text in enumerate(PIECES[: request.sampling.max_tokens]):
        token = TokenLogprob(token_id=65 + number, logprob=-0.5, top=((65, -0.5), (66, -1e999)))
        asks = request.sampling.logprobs is not None
        yield Delta(
            request_id=request.id,
            text=text,
            token_ids=(65 + number,),
            logprobs=(token,) if asks else (),
        )
    usage = make_usage(request, len(PIECES))
    yield Finished(request_id=request.id, reason="stop", usage=usage)


def hang(request: Request) -> Iterator[None]:
    """Never a word."""
    while True:
        yield None


def babble(request: Request) -> Iterator[Reply]:
    """One word after the other, for ever."""
    while True:
        yield Delta(request_id=request.id, text="blah " * 20_000, token_ids=(1,))


def fail(request: Request) -> Iterator[Reply]:
    """Refused before the first token."""
    refusal = Refusal("waited too long", 503, "server_error", None, "timeout", 7.0)
    yield Failed(request_id=request.id, refusal=refusal)


def falter(request: Request) -> Iterator[Reply]:
    """Refused after the first token."""
    yield Delta(request_id=request.id, text="one", token_ids=(1,))
    yield from fail(request)


_SCRIPTS: Mapping[str, Script] = {
    "HANG": hang,
    "BABBLE": babble,
    "FAIL": fail,
    "FALTER": falter,
}


def by_prompt(request: Request) -> Iterator[Reply | None]:
    """The script whose name stands in the prompt, else `say`."""
    prompt = BytePrompts().decode(request.prompt_ids)
    found = [script for name, script in _SCRIPTS.items() if name in prompt]
    return found[0](request) if found else say(request)


class BytePrompts:
    """Every byte a token."""

    def encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        if messages[-1]["role"] == "assistant":
            raise RequestError(Refusal("the template wants a user last", param="messages"))
        lines = (f"{message['role']}: {message['content']}\n" for message in messages)
        return tuple("".join(lines).encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")


class ScriptedWorker(threading.Thread):
    """Steps through one script per request; obeys cancel, pin and drain."""

    def __init__(self, mailbox: Mailbox, script: Script = by_prompt) -> None:
        super().__init__(name="scripted-worker")
        self.requests: queue.Queue[Request] = queue.Queue()
        self.cancelled: queue.Queue[str] = queue.Queue()
        self.stop = threading.Event()
        self.tally = Tally()
        self._mailbox = mailbox
        self._script = script
        self._running: dict[str, Iterator[Reply | None]] = {}

    def run(self) -> None:
        while not self.stop.is_set():
            for mail in self._mailbox.collect(timeout_s=0.005):
                self._take(mail)
            replies = [next(script, None) for script in list(self._running.values())]
            for reply in replies:
                if isinstance(reply, Finished):
                    self.tally.add_step(0.01, reply.usage.tokens_by_mode)
            self._mailbox.reply([reply for reply in replies if reply is not None])

    def _take(self, mail: Mail) -> None:
        match mail:
            case Request():
                self.requests.put(mail)
                self._running[mail.id] = self._script(mail)
            case Cancel(request_id=id_):
                self._running.pop(id_, None)
                self.cancelled.put(id_)
            case PinMode(mode=mode):
                reason = {"reason_code": "pinned", "reason_text": "pinned by hand"}
                self.publish(pinned=True, mode=mode, **reason)
            case UnpinMode():
                self.publish(pinned=False, mode=FULL)
            case BeginDrain():
                self.publish(health=Health.DRAINING, is_ready=False)

    def publish(self, **changes: Any) -> None:
        self._mailbox.status = replace(self._mailbox.status, time_s=time.monotonic(), **changes)


def comes_true(claim: Callable[[], bool]) -> bool:
    """Whether `claim` holds soon."""
    until_s = time.monotonic() + PATIENT_S
    while not claim() and time.monotonic() < until_s:
        time.sleep(0.005)
    return claim()


def event_json(recorded: Recorded) -> str:
    return json.dumps({"seq": recorded.seq, "type": recorded.event.type})


def brief_documents(mailbox: Mailbox) -> Documents:
    """Short ones, for tests that look at how they are sent."""
    return Documents(state=lambda: json.dumps({"mode": mailbox.status.mode}), event=event_json)


@dataclass
class Served:
    """A running server and what stands behind it."""

    mailbox: Mailbox
    worker: ScriptedWorker
    events: EventLog
    client: EngineClient
    url: str = ""
    http: httpx.Client = field(default_factory=lambda: httpx.Client(trust_env=False))
    app: Any = None
    stop: Callable[[], object] = print
    """Tells the server to stop; it need not be called."""

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def next_request(self) -> Request:
        return self.worker.requests.get(timeout=PATIENT_S)

    def next_cancelled(self) -> str:
        return self.worker.cancelled.get(timeout=PATIENT_S)


@contextmanager
def serving(
    *,
    script: Script = by_prompt,
    patience: Patience | None = None,
    status: Status | None = None,
    make_documents: Callable[[Mailbox], Documents] = brief_documents,
    budget_bytes: int | None = None,
    num_events: int = 8,
    **settings: Any,
) -> Iterator[Served]:
    """A real server on a free port of the loopback, and a scripted worker behind it."""
    mailbox = Mailbox(status or make_status())
    chosen = ServerSettings(**{"port": 0, "drain_timeout_s": 1, **settings})
    events = EventLog(capacity=num_events)
    max_in_flight = chosen.max_running + chosen.max_waiting
    served = Served(
        mailbox=mailbox,
        worker=ScriptedWorker(mailbox, script),
        events=events,
        client=EngineClient(mailbox, max_in_flight=max_in_flight, events=events),
    )
    served.app = _app(
        served, chosen, patience or Patience(pin_s=PATIENT_S), make_documents(mailbox), budget_bytes
    )
    with _running(served, chosen), served.http:
        served.http.base_url = served.url
        yield served


def _app(
    served: Served,
    settings: ServerSettings,
    patience: Patience,
    documents: Documents,
    budget_bytes: int | None,
) -> Any:
    return make_app(
        client=served.client,
        prompts=BytePrompts(),
        card=ModelCard(
            name="demo",
            max_context=MAX_CONTEXT,
            vocab_size=256,
            created_s=1_700_000_000,
            supports=lambda mode: mode.page_format != "int8",
        ),
        events=served.events,
        documents=documents,
        settings=settings,
        tally=served.worker.tally,
        cache_bytes=lambda: {"full": 32, "int4": 16, "free": 16},
        budget_bytes=budget_bytes,
        patience=patience,
    )


@contextmanager
def _running(served: Served, settings: ServerSettings) -> Iterator[None]:
    listening: queue.Queue[str] = queue.Queue()
    loops: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def main() -> None:
        stop = asyncio.Event()
        loops.put((asyncio.get_running_loop(), stop))
        await serve_http(served.app, settings, stop=stop, on_listening=listening.put)

    server = threading.Thread(target=asyncio.run, args=(main(),), name="http")
    server.start()
    served.worker.start()
    loop, stop = loops.get(timeout=PATIENT_S)
    served.url = listening.get(timeout=PATIENT_S)
    served.stop = lambda: loop.call_soon_threadsafe(stop.set)
    try:
        yield
    finally:
        if server.is_alive():
            served.stop()
        server.join(PATIENT_S)
        served.worker.stop.set()
        served.worker.join(PATIENT_S)
        assert not server.is_alive()


def sequence_status(state: str) -> SequenceStatus:
    return SequenceStatus(id="a", state=state, mode=FULL, num_tokens=1, cache_bytes=1, exact=True)
