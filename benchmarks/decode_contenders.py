"""Who decodes against whom: our engine, stepped by hand, and `generate` of transformers.

Both prefill first, unmeasured, and then take turns of a few tokens, going on where they stopped.
"""

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
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
from adaptive_kv.engine.mailbox import Delta, Failed, Reply, Request, SamplingParams
from adaptive_kv.engine.service import build_engine
from adaptive_kv.events import EventLog

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn took: tokens of all sequences, seconds on the clock and of this process."""

    num_tokens: int
    wall_s: float
    cpu_s: float


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
    """The whole path: sensors, policy, scheduling, forward, sampling, text, replies, status."""

    def __init__(self, loaded: LoadedModel, mode: str, prompts: Prompts, max_tokens: int) -> None:
        self.outputs: list[list[int]] = [[] for _ in prompts]
        flags = {
            "policy": {"name": "fixed", "options": {"mode": mode}},
            "cache": {"ladder": tuple(dict.fromkeys(("full", mode)))},
            "memory": {"floor": 0},
            "server": {"max_running": len(prompts)},
        }
        settings = load_settings(flags=flags, default_file=Path("/nonexistent"))
        self._engine = build_engine(settings, loaded, EventLog())
        self._engine.sensor.start()
        self._engine.mailbox.on_replies(self._take)
        for number, prompt in enumerate(prompts):
            sampling = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
            request = Request(id=str(number), prompt_ids=tuple(prompt), sampling=sampling)
            self._engine.mailbox.post(request)
        while not all(self.outputs):
            self._engine.worker.step()

    def take_turn(self, num_tokens: int) -> Turn:
        """As `Contender.take_turn`: each step gives every sequence one token."""
        before = sum(map(len, self.outputs))
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(num_tokens):
            self._engine.worker.step()
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        num_done = sum(map(len, self.outputs)) - before
        assert num_done == num_tokens * len(self.outputs), "a sequence stood still"
        return Turn(num_done, wall_s, cpu_s)

    def close(self) -> None:
        """As `Contender.close`."""
        self._engine.stop()

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
        # Its name since transformers 5.24, and before.
        forward: Any = module.forward
        names = inspect.signature(forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._generate(1, _Stamps())

    @property
    def outputs(self) -> list[list[int]]:
        """As `Contender.outputs`."""
        outputs: list[list[int]] = self._ids[:, self._num_prompt :].tolist()
        return outputs

    def take_turn(self, num_tokens: int) -> Turn:
        """As `Contender.take_turn`; what `generate` does before its first token is not counted."""
        stamps = _Stamps()
        self._generate(num_tokens + 1, stamps)
        (wall_s, cpu_s), (last_wall_s, last_cpu_s) = stamps.seen[0], stamps.seen[-1]
        return Turn(num_tokens * len(self._ids), last_wall_s - wall_s, last_cpu_s - cpu_s)

    def close(self) -> None:
        """As `Contender.close`."""
        del self._cache

    def _generate(self, num_tokens: int, stamps: "_Stamps") -> None:
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


class _Stamps(StoppingCriteria):
    """Never stops; notes when each token was there."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        """Note the time."""
        self.seen.append((time.perf_counter(), time.process_time()))
        return torch.zeros(len(input_ids), dtype=torch.bool)
