"""Records the traces in docs/traces: the real service, prompted over HTTP and really squeezed.

A neighbour, this process, shares a device with the service's cache: a part of the machine's memory,
of which it says in a file, many times a second, how much is free. What it takes it really holds;
what the cache takes it asks the service. Each scene takes about three minutes.

    python tools/record_traces.py
    python tools/record_traces.py burst --folder traces
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from adaptive_kv.demo.ballast import CHUNK_BYTES, HostMemory
from adaptive_kv.demo.client import Api, ApiError
from adaptive_kv.demo.load import make_prompt
from adaptive_kv.demo.processes import serving
from adaptive_kv.trace import read_trace
from adaptive_kv.trace.copying import write_trace

MIB = 2**20
DEVICE_BYTES = 512 * MIB
FLOOR_BYTES = 32 * MIB
FOLDER = Path(__file__).parents[1] / "docs" / "traces"
_PERIOD_S = 0.02
_START_S = 100.0
_TOML = """\
[model]
device = "cpu"
dtype = "float32"
[server]
port = 0
[memory]
source = "file:{memory}"
floor = {floor}
[cache]
ladder = ["full", "int8", "int4", "window:512+int4"]
slab = "1MiB"
[trace]
path = "{trace}"
hz = 2
[log]
format = "json"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Asks again as soon as it is answered, from `from_s` on, until it has asked `times`."""

    from_s: float = 0.0
    times: int = 1000
    num_chars: int = 6000
    num_tokens: int = 256
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What happens; `left` says, for a time, how much the neighbour leaves above the floor."""

    duration_s: float
    left: Callable[[float], float]
    clients: tuple[Client, ...]


def sawtooth(time_s: float) -> float:
    """Ramps of 20 seconds down to less and less, and faster ones up again."""
    turn, into_s = divmod(time_s, 45.0)
    deepest = (60.0, 40.0, 24.0, 50.0)[int(turn) % 4] * MIB
    most = 480.0 * MIB
    if into_s < 12:
        return most
    if into_s < 32:
        return most - (most - deepest) * (into_s - 12) / 20
    return deepest if into_s < 36 else deepest + (most - deepest) * min(1.0, (into_s - 36) / 6)


def sudden(time_s: float) -> float:
    """Now and then everything at once, but for a little."""
    for begin_s, end_s, left in ((20, 50, 40.0), (80, 115, 20.0), (145, 165, 60.0)):
        if begin_s <= time_s < end_s:
            return left * MIB
    return 480.0 * MIB


def steady(_time_s: float) -> float:
    """The neighbour holds what it has."""
    return 72.0 * MIB


def _batch(from_s: float) -> tuple[Client, ...]:
    """Many long prompts at once that nobody waits for."""
    return tuple(
        Client(from_s=from_s + 0.1 * i, times=1, num_chars=11_000, num_tokens=300, priority=-1)
        for i in range(8)
    )


_CROWD = tuple(Client(from_s=0.5 * i, num_chars=3000 + 400 * i) for i in range(12))
_TALK = tuple(Client(num_chars=1500 + 500 * i, num_tokens=192, priority=1) for i in range(4))

SCENES = {
    "sawtooth": Scene(duration_s=180, left=sawtooth, clients=_CROWD),
    "sudden": Scene(duration_s=180, left=sudden, clients=_CROWD),
    "burst": Scene(
        duration_s=180, left=steady, clients=(*_TALK, *_batch(15), *_batch(70), *_batch(125))
    ),
}


class Neighbour:
    """Takes and gives memory as the scene wants it, and says what is free."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._memory = HostMemory()

    def tell(self, cache_bytes: int) -> int:
        """Say how much is free beside a cache of this size; returns it."""
        free_bytes = DEVICE_BYTES - self._memory.num_chunks * CHUNK_BYTES - cache_bytes
        document = {"total_bytes": DEVICE_BYTES, "free_bytes": max(0, free_bytes)}
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(document))
        fresh.replace(self._file)
        return free_bytes

    def leave(self, left_bytes: float, cache_bytes: int) -> None:
        """Hold so much that the cache may have `left_bytes`; what is not free cannot be had."""
        wanted = int((DEVICE_BYTES - FLOOR_BYTES - left_bytes) // CHUNK_BYTES)
        while self._memory.num_chunks > wanted:
            self._memory.give()
        room = self.tell(cache_bytes) // CHUNK_BYTES
        while self._memory.num_chunks < wanted and room > 0:
            self._memory.take()
            room -= 1
        self.tell(cache_bytes)


def record(scene: Scene, file: Path) -> None:
    """Play a scene and write its trace."""
    with tempfile.TemporaryDirectory(prefix="adaptive-kv-trace-") as made:
        folder = Path(made)
        neighbour = Neighbour(folder / "memory.json")
        neighbour.tell(0)
        is_over = threading.Event()
        with _telling(neighbour, is_over), serving(folder, _config(folder)) as service:
            api = Api(service.port(_START_S))
            is_over.set()
            play(scene, api, neighbour)
        trace = read_trace(folder / "trace")
        write_trace(file, trace.header, trace.moments())


@contextmanager
def _telling(neighbour: Neighbour, is_over: threading.Event) -> Iterator[None]:
    """Keep the file fresh while the service starts."""

    def tell_on() -> None:
        while not is_over.wait(0.1):
            neighbour.tell(0)

    thread = threading.Thread(target=tell_on)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _config(folder: Path) -> str:
    """Of a service that records."""
    memory, trace = folder / "memory.json", folder / "trace"
    return _TOML.format(memory=memory, floor=FLOOR_BYTES, trace=trace)


def play(scene: Scene, api: Api, neighbour: Neighbour) -> None:
    """Let everything happen, and wait until everyone is answered."""
    began_s, numbers = time.monotonic(), count()
    end_s = began_s + scene.duration_s

    def ask_on(client: Client) -> None:
        time.sleep(client.from_s)
        for _ in range(client.times):
            if time.monotonic() > end_s:
                return
            with suppress(ApiError):
                _ask(api, client, next(numbers))

    with ThreadPoolExecutor(len(scene.clients)) as pool:
        asked = [pool.submit(ask_on, client) for client in scene.clients]
        while not all(each.done() for each in asked) or time.monotonic() < end_s:
            cache_bytes = api.status()["memory"]["cache_bytes"]
            neighbour.leave(scene.left(time.monotonic() - began_s), cache_bytes)
            time.sleep(_PERIOD_S)
        for each in asked:
            each.result()


def _ask(api: Api, client: Client, number: int) -> None:
    text = make_prompt(number) + make_prompt(number + 1000)
    for _ in api.chat(
        text[: client.num_chars],
        max_tokens=client.num_tokens,
        seed=number,
        ignore_eos=True,
        adaptive_kv={"priority": client.priority},
    ):
        pass


def main() -> None:
    """Record what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="*", default=[*SCENES], help=", ".join(SCENES))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.scenes:
        file = arguments.folder / f"{name}.jsonl.gz"
        record(SCENES[name], file)
        print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
