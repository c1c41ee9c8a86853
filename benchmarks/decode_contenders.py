"""Who decodes against whom: our engine, stepped by hand, and `generate` of transformers.

Both prefill first, unmeasured, and then take turns of a few tokens, going on where they stopped.
"""

import inspect
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from rounds import Turn
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from adaptive_kv.config import load_settings
from adaptive_kv.engine.loading import LoadedModel
from adaptive_kv.engine.mailbox import (
    Delta,
    Failed,
    PinMode,
    Reply,
    Request,
    SamplingParams,
)
from adaptive_kv.engine.noise import fill_with_noise
from adaptive_kv.engine.sequence import Sequence as Live
from adaptive_kv.engine.service import build_engine
from adaptive_kv.events import EventLog
from adaptive_kv.policy import CacheMode

Prompts = Sequence[Sequence[int]]


class Contender(Protocol):
    """Someone who decodes greedily for a number of sequences at once."""

    @property
    def outputs(self) -> list[list[int]]:
        """Token ids by sequence, prompts left out."""
        ...

    def take_turn(self, num_tokens: int) -> Turn:
        """Decode `num_tokens` more for every sequence."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Ours:
    """The whole path: sensors, policy, scheduling, forward, sampling, text, replies, status.

    `is_filled` puts noise in the place of what prefilling all but the last token would store. Turns
    can be taken once all sequences decode; `is_ready` false leaves the way there to `step`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        mode: str,
        prompts: Prompts,
        max_tokens: int,
        *,
        is_filled: bool = False,
        is_ready: bool = True,
        sections: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        self.outputs: list[list[int]] = [[] for _ in prompts]
        flags = {
            "policy": {"name": "fixed", "options": {"mode": mode}},
            "cache": {"ladder": tuple(dict.fromkeys(("full", mode)))},
            "memory": {"floor": 0},
            "server": {"max_running": len(prompts)},
            **(sections or {}),
        }
        settings = load_settings(flags=flags, default_file=Path("/nonexistent"))
        self._engine = build_engine(settings, loaded, EventLog())
        self._engine.sensor.start()
        self._engine.mailbox.on_replies(self._take)
        for number, prompt in enumerate(prompts):
            sampling = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
            request = Request(id=str(number), prompt_ids=tuple(prompt), sampling=sampling)
            self._engine.mailbox.post(request)
        if is_filled:
            self._fill()
        while is_ready and not all(self.outputs):
            self.step()
        while is_filled and not self.is_settled:  # what was filled is full at first
            self.step()

    def step(self) -> None:
        """One step of the worker."""
        self._engine.worker.step()

    def take_turn(self, num_tokens: int) -> Turn:
        """As `Contender.take_turn`: each step gives every sequence one token."""
        before = sum(map(len, self.outputs))
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(num_tokens):
            self.step()
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        num_done = sum(map(len, self.outputs)) - before
        assert num_done == num_tokens * len(self.outputs), "a sequence stood still"
        return Turn(num_done, wall_s, cpu_s)

    def close(self) -> None:
        """As `Contender.close`."""
        self._engine.stop()

    @property
    def cache_bytes(self) -> int:
        """Bytes of pages in use."""
        return self._engine.worker._store.used_bytes  # noqa: SLF001 - the status is older

    @property
    def is_settled(self) -> bool:
        """Whether every page is in the form that the mode asks for."""
        return all(sequence.cache.is_settled for sequence in self._running)

    @property
    def are_exact(self) -> bool:
        """Whether the next tokens will be as in a fresh full run."""
        return all(sequence.is_exact for sequence in self._running)

    @property
    def modes(self) -> set[str]:
        """Of the sequences."""
        return {sequence.mode for sequence in self._running}

    def pin(self, mode: str) -> None:
        """Have all sequences go into a mode, from the next step on."""
        self._engine.mailbox.post(PinMode(CacheMode(mode)))

    @property
    def _running(self) -> Sequence[Live]:
        return self._engine.worker._scheduler.running  # noqa: SLF001 - nobody else asks

    def _fill(self) -> None:
        worker = self._engine.worker
        worker._desk.take_mail(0.0)  # noqa: SLF001 - what a step begins with
        for sequence in worker._scheduler.waiting:  # noqa: SLF001 - nobody else fills
            num_stored = len(sequence.tokens) - 1
            sequence.cache.reserve(num_stored)
            fill_with_noise(sequence.cache)
            sequence.cache.commit(num_stored, is_exact=True)

    def _take(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            if isinstance(reply, Failed):
                raise RuntimeError(reply.refusal.message)
            if isinstance(reply, Delta):
                self.outputs[int(reply.request_id)] += reply.token_ids


class Stock:
    """`generate` with its default cache, on a static batch of prompts of equal length."""

    def __init__(self, module: PreTrainedModel, prompts: Prompts) -> None:
        self._module: Any = module
        self._ids = torch.tensor(prompts)
        self._num_prompt = self._ids.shape[1]
        self._cache = DynamicCache(config=module.config)
        self._cache_name = cache_name(module)
        self._generate(1, Stamps())

    @property
    def outputs(self) -> list[list[int]]:
        """As `Contender.outputs`."""
        outputs: list[list[int]] = self._ids[:, self._num_prompt :].tolist()
        return outputs

    def take_turn(self, num_tokens: int) -> Turn:
        """As `Contender.take_turn`; what `generate` does before its first token is not counted."""
        stamps = Stamps()
        self._generate(num_tokens + 1, stamps)
        (wall_s, cpu_s), (last_wall_s, last_cpu_s) = stamps.seen[0], stamps.seen[-1]
        return Turn(num_tokens * len(self._ids), last_wall_s - wall_s, last_cpu_s - cpu_s)

    def close(self) -> None:
        """As `Contender.close`."""
        del self._cache

    def _generate(self, num_tokens: int, stamps: "Stamps") -> None:
        make_config: Any = GenerationConfig
        self._ids = self._module.generate(
            self._ids,
            attention_mask=torch.ones_like(self._ids),
            **{self._cache_name: self._cache},
            stopping_criteria=StoppingCriteriaList([stamps]),
            generation_config=make_config(
                do_sample=False, max_new_tokens=num_tokens, eos_token_id=None, pad_token_id=0
            ),
        )


def cache_name(module: PreTrainedModel) -> str:
    """What `forward` calls its cache: since transformers 5.24, and before."""
    forward: Any = module.forward
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


class Stamps(StoppingCriteria):
    """Never stops; notes when each token was there."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        """Note the time."""
        self.seen.append((time.perf_counter(), time.process_time()))
        return torch.zeros(len(input_ids), dtype=torch.bool)
