"""The whole product under a squeeze: OpenAI clients in front, a real broker behind it."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import openai
import pytest
from broker import Listener, comes_true, running_mosquitto
from cli.test_serve import Served, ask, serving
from schemas import validate

MIB = 2**20
FLOOR_BYTES = 100 * MIB
ROOMY_BYTES, TIGHT_BYTES = 900 * MIB, 105 * MIB
TOTAL_BYTES = 1000 * MIB

CONFIG = f"""
[memory]
source = "file:{{file}}"
floor = {FLOOR_BYTES}
[cache]
ladder = ["full", "int8", "int4", "window:256+int4"]
slab = "1MiB"
[policy]
min_dwell_s = 0.2
[policy.options]
hold_s = 0.5
"""


class Device:
    """Memory that another program reports, rewritten as often as `file:PATH` asks for."""

    def __init__(self, file: Path) -> None:
        self.free_bytes = ROOMY_BYTES
        self._file = file
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._write()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(0.05):
            self._write()

    def _write(self) -> None:
        document = {"total_bytes": TOTAL_BYTES, "free_bytes": self.free_bytes}
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(document))
        new.replace(self._file)


@contextmanager
def squeezable(folder: Path, *arguments: str) -> Iterator[tuple[Served, Device]]:
    """The service on a device whose free memory the test sets."""
    config = folder / "adaptive-kv.toml"
    config.write_text(CONFIG.format(file=folder / "memory.json"))
    with (
        Device(folder / "memory.json") as device,
        serving(folder, "--config", str(config), *arguments) as served,
    ):
        yield served, device


def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=120)


def prompt(number: int) -> str:
    return f"Request {number}. " + "def chain(*iterables): yield from iterables\n" * 40


def mode(served: Served) -> str:
    found: str = httpx.get(f"{served.url}/status").json()["mode"]
    return found


def stream_completion(served: Served, number: int) -> openai.types.Completion:
    """A long streamed completion; the chunk with its usage, its text checked on the way."""
    chunks = list(
        client(served).completions.create(
            model="demo",
            prompt=prompt(number),
            max_tokens=400,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
    )
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices)
    return chunks[-1]


def modes_of(chunk: openai.types.Completion) -> dict[str, int]:
    assert chunk.usage is not None
    usage = chunk.usage.model_dump()["adaptive_kv"]
    assert sum(usage["tokens_by_mode"].values()) == chunk.usage.completion_tokens == 400
    found: dict[str, int] = usage["tokens_by_mode"]
    return found


def test_an_openai_client_streams_a_chat_and_a_completion(tmp_path: Path) -> None:
    """Both arrive in pieces, with the usage that says in which modes they were served."""
    with squeezable(tmp_path) as (served, _):
        chat = list(
            client(served).chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": "What does itertools.chain do?"}],
                max_tokens=40,
                temperature=0,
                stream=True,
            )
        )
        assert chat[0].choices[0].delta.role == "assistant"
        assert chat[-1].choices[0].finish_reason in {"stop", "length"}
        assert "".join(piece.choices[0].delta.content or "" for piece in chat)
        assert modes_of(stream_completion(served, 0)) == {"full": 400}


def test_a_squeeze_goes_down_and_up_the_ladder_between_tokens(tmp_path: Path) -> None:
    """Nothing fails, and a broker hears every change, valid and in order."""
    with (
        running_mosquitto(tmp_path) as broker,
        Listener(broker) as listener,
        squeezable(tmp_path, "--mqtt-url", broker.url, "--node", "edge-1") as (served, device),
        ThreadPoolExecutor(8) as clients,
    ):
        answers = [clients.submit(stream_completion, served, n) for n in range(8)]
        assert comes_true(lambda: running(served) == 8)
        device.free_bytes = TIGHT_BYTES
        assert comes_true(lambda: mode(served) != "full")
        device.free_bytes = ROOMY_BYTES
        by_mode = [modes_of(answer.result()) for answer in answers]
        assert any(set(modes) - {"full"} for modes in by_mode)
        assert comes_true(lambda: mode(served) == "full")
        last_seq = newest_seq(served)
        assert listener.hears(
            lambda it: last_seq in {heard.json["seq"] for heard in it.of("event")}
        )
        assert listener.hears(lambda it: it.of("state")[-1].json["mode"] == "full")

    events = [heard.json for heard in listener.of("event")]
    for name in ("state", "event"):
        for heard in listener.of(name):
            validate(name, heard.json)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    types = {event["type"] for event in events}
    assert {"mode_changed", "sequence_switched"} <= types
    assert not types & {"oom", "policy_fault", "sensor_fault", "request_rejected"}
    changes = [event for event in events if event["type"] == "mode_changed"]
    assert [c["from"] for c in changes] == ["full", *(c["to"] for c in changes[:-1])]


def test_what_a_squeeze_has_cost_is_healed_once_it_lifts(tmp_path: Path) -> None:
    """Readers of `/events` hear of it, and the state says that what follows is exact."""
    with squeezable(tmp_path) as (served, device), ExitStack() as answers:
        for number in range(8):
            asked = ask(f"{served.url}/v1/completions", prompt=prompt(number), max_tokens=2500)
            next(answers.enter_context(asked))
        device.free_bytes = TIGHT_BYTES
        assert comes_true(lambda: len(exact_ids(served)) < 8)
        device.free_bytes = ROOMY_BYTES
        healed = next(event for event in events(served) if event["type"] == "healed")
        validate("event", healed)
        assert comes_true(lambda: healed["sequence"] in exact_ids(served))


def test_a_request_that_permits_only_full_is_never_packed(tmp_path: Path) -> None:
    """Its neighbours pay for it, and its text is what it would have been without a squeeze."""
    only_full = {"ignore_eos": True, "adaptive_kv": {"allow": ["full"]}}

    def complete(served: Served) -> openai.types.Completion:
        return client(served).completions.create(
            model="demo", prompt=prompt(0), max_tokens=200, temperature=0, extra_body=only_full
        )

    with squeezable(tmp_path) as (served, device), ThreadPoolExecutor(4) as clients:
        wanted = complete(served).choices[0].text
        neighbours = [clients.submit(stream_completion, served, n) for n in range(3)]
        mine = clients.submit(complete, served)
        assert comes_true(lambda: running(served) == 4)
        device.free_bytes = TIGHT_BYTES
        assert comes_true(lambda: mode(served) != "full")
        device.free_bytes = ROOMY_BYTES
        answer = mine.result()
        usage = answer.usage.model_dump()["adaptive_kv"] if answer.usage else {}
        assert usage == {"tokens_by_mode": {"full": 200}, "switches": 0, "exact": True}
        assert answer.choices[0].text == wanted
        assert all(neighbour.result() for neighbour in neighbours)


def running(served: Served) -> int:
    found: int = httpx.get(f"{served.url}/status").json()["load"]["running"]
    return found


def exact_ids(served: Served) -> set[str]:
    """The sequences of which the state says that what follows is exact."""
    sequences = httpx.get(f"{served.url}/status").json()["sequence_list"]
    return {one["id"] for one in sequences if one["exact"]}


def events(served: Served) -> Iterator[dict[str, Any]]:
    """Every event from the first on, as it comes."""
    with httpx.stream("GET", f"{served.url}/events?since=0", timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


def newest_seq(served: Served) -> int:
    """The `seq` of the last event, by asking for all of them as a browser would."""
    with httpx.stream("GET", f"{served.url}/events?since=0", timeout=5) as response:
        seq = 0
        try:
            for line in response.iter_lines():
                if line.startswith("id:"):
                    seq = int(line.removeprefix("id:"))
        except httpx.ReadTimeout:
            return seq
    pytest.fail("the stream of events ended")
