"""The whole engine on a device while a neighbour takes its memory and gives it back: nothing fails.

Twice the neighbour takes all that is free but half of the floor, while the sequences go on.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_decode import make_module
from gpu_pages import Place
from transformers import AutoTokenizer

from adaptive_kv.config import Settings, load_settings
from adaptive_kv.engine.loading import LoadedModel, embedded_model
from adaptive_kv.engine.mailbox import Failed, Finished, Reply, Request, SamplingParams
from adaptive_kv.engine.model import prepare
from adaptive_kv.engine.service import Engine, build_engine
from adaptive_kv.events import EventLog

_MIB = 1 << 20
_DRY_TOTAL_BYTES = _MIB // 2
_SQUEEZES = ((0.2, 0.45), (0.6, 0.8))
"""From and to which share of the tokens the neighbour holds all it can."""
_LONGEST_S = 120.0


def squeeze(place: Place) -> dict[str, Any]:
    """How many requests were answered and failed, what events there were, and for how long."""
    num_requests, num_prompt, num_tokens = (2, 140, 16) if place.is_dry else (24, 3000, 600)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "memory.json"
        _tell(file, _DRY_TOTAL_BYTES)
        events = EventLog(capacity=100_000)
        engine = build_engine(_settings(place, file), _loaded(place), events)
        replies: list[Reply] = []
        engine.mailbox.on_replies(replies.extend)
        for number in range(num_requests):
            engine.mailbox.post(_request(number, num_prompt, num_tokens))
        engine.sensor.start()
        started_s = time.monotonic()
        try:
            with _neighbour(place) as neighbour:
                held = _Held(place, file, neighbour, engine)
                _run(engine, held, replies, num_requests * num_tokens, num_requests)
        finally:
            engine.stop()
    counts = Counter(record.event.type for record in events.since(0)[0])
    failed = [reply.refusal.message for reply in replies if isinstance(reply, Failed)]
    num_completed = sum(isinstance(reply, Finished) for reply in replies)
    return {
        "requests": num_requests,
        "completed": num_completed,
        "failed": len(failed),
        "messages": sorted(set(failed)),
        "most_held_bytes": held.most_bytes,
        "events": dict(counts),
        "took_s": time.monotonic() - started_s,
        "is_right": num_completed == num_requests and not failed,
    }


class _Held:
    """What the neighbour holds, and in a dry run what the file says of it."""

    def __init__(
        self, place: Place, file: Path, neighbour: "subprocess.Popen[str]", engine: Engine
    ) -> None:
        self._place, self._file, self._neighbour, self._engine = place, file, neighbour, engine
        self._num_bytes = 0
        self.most_bytes = 0

    def hold(self, *, is_much: bool) -> None:
        """Take nearly all that is free, or give all back, where that is not so yet."""
        if is_much != (self._num_bytes > 0):
            wanted = self._free_bytes() - self._floor_bytes() // 2 if is_much else 0
            assert self._neighbour.stdin is not None
            assert self._neighbour.stdout is not None
            self._neighbour.stdin.write(f"{max(0, wanted)}\n")
            self._neighbour.stdin.flush()
            self._num_bytes = int(self._neighbour.stdout.readline())
            self.most_bytes = max(self.most_bytes, self._num_bytes)
        if self._place.is_dry:
            _tell(self._file, self._free_bytes())

    def _free_bytes(self) -> int:
        if self._place.is_dry:
            return max(0, _DRY_TOTAL_BYTES - self._num_bytes - self._engine.budget.cache_bytes)
        return int(torch.cuda.mem_get_info()[0])

    def _floor_bytes(self) -> int:
        return _floor_bytes(self._place)


def _run(
    engine: Engine, held: _Held, replies: Sequence[Reply], num_wanted: int, num_requests: int
) -> None:
    until_s = time.monotonic() + _LONGEST_S
    num_ended = num_tokens = num_seen = 0
    while num_ended < num_requests and time.monotonic() < until_s:
        for reply in replies[num_seen:]:
            num_ended += isinstance(reply, Finished | Failed)
            num_tokens += len(getattr(reply, "token_ids", ()))
        num_seen = len(replies)
        share = num_tokens / num_wanted
        held.hold(is_much=any(first <= share < last for first, last in _SQUEEZES))
        engine.worker.step()


def _floor_bytes(place: Place) -> int:
    return _DRY_TOTAL_BYTES // 8 if place.is_dry else 512 * _MIB


def _settings(place: Place, file: Path) -> Settings:
    flags: dict[str, Any] = {
        "memory": {"source": f"file:{file}" if place.is_dry else "auto"},
        "cache": {"ladder": ("full", "int8", "int4", "window:256+int4")},
        "server": {"max_running": 32},
        "policy": {"min_dwell_s": 0.1, "options": {"hold_s": 0.3}},
    }
    flags["memory"]["floor"] = _floor_bytes(place)
    if place.is_dry:
        flags["cache"] |= {"slab": 32 * 1024, "recent": 32}
        flags["memory"]["max_age_s"] = 60
    return load_settings(flags=flags, default_file=Path("/nonexistent"))


def _loaded(place: Place) -> LoadedModel:
    """Random weights, and the embedded model's tokenizer with as many words as it takes."""
    module = make_module(place, "Llama-3.2-1B")
    tokenizer: Any = AutoTokenizer.from_pretrained(embedded_model())
    missing = range(len(tokenizer), module.config.vocab_size)
    tokenizer.add_tokens([f" word{number}" for number in missing])
    return LoadedModel(
        name="random", model=prepare(module), tokenizer=tokenizer, eos_ids=frozenset()
    )


def _request(number: int, num_prompt: int, num_tokens: int) -> Request:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(3, 500, (num_prompt,), generator=generator).tolist()
    sampling = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    return Request(id=str(number), prompt_ids=tuple(ids), sampling=sampling)


@contextmanager
def _neighbour(place: Place) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(Path(__file__).with_name("gpu_neighbour.py"))]
    command.append(place.device.type)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def _tell(file: Path, free_bytes: int) -> None:
    """As any program may: whole, and at once."""
    text = json.dumps({"total_bytes": _DRY_TOTAL_BYTES, "free_bytes": free_bytes})
    new = file.with_suffix(".new")
    new.write_text(text, "utf-8")
    new.replace(file)
