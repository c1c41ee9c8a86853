"""A client that streams chat completions and notes when what came."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from rounds import Turn
from served_peers import Running

_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: seconds of the first and the last piece of text, and how many tokens it has."""

    first_s: float
    last_s: float
    first_cpu_s: float
    num_tokens: int
    num_pieces: int
    modes: tuple[str, ...]
    """In which the tokens were made, where the server tells it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a number of requests at once took: of the whole, and of all tokens but the first."""

    whole: Turn
    decode: Turn
    first_s: float
    """Until the first piece of text, in the median of the requests."""
    answers: tuple[Answer, ...]


def ask_all(
    server: Running, extra: Mapping[str, Any], prompts: Sequence[str], num_new: int
) -> Asked:
    """All prompts at once; `decode` tells something only where there is a single one."""
    started_s, started_cpu_s = time.perf_counter(), server.cpu_s()
    answers = asyncio.run(_ask_all(server, extra, prompts, num_new))
    cpu_s = server.cpu_s()
    whole = Turn(
        sum(answer.num_tokens for answer in answers),
        max(answer.last_s for answer in answers) - started_s,
        max(cpu_s - started_cpu_s, 1e-2),  # what the kernel tells is that coarse
    )
    first = answers[0]
    decode = Turn(
        first.num_tokens - 1, first.last_s - first.first_s, max(cpu_s - first.first_cpu_s, 1e-2)
    )
    firsts = sorted(answer.first_s - started_s for answer in answers)
    return Asked(whole, decode, firsts[len(firsts) // 2], tuple(answers))


async def _ask_all(
    server: Running, extra: Mapping[str, Any], prompts: Sequence[str], num_new: int
) -> list[Answer]:
    async with httpx.AsyncClient(timeout=_TIMEOUT_S) as client:
        return await asyncio.gather(
            *(_ask(client, server, _body(server, extra, prompt, num_new)) for prompt in prompts)
        )


def _body(server: Running, extra: Mapping[str, Any], prompt: str, num_new: int) -> dict[str, Any]:
    return {
        "model": server.peer.is_served_as,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": num_new,
        "stream": True,
        "stream_options": {"include_usage": True},
        **extra,
    }


async def _ask(client: httpx.AsyncClient, server: Running, body: Mapping[str, Any]) -> Answer:
    stamps: list[float] = []
    first_cpu_s = 0.0
    usage: Mapping[str, Any] = {}
    url = f"{server.url}/v1/chat/completions"
    async with client.stream("POST", url, json=dict(body)) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread())[:300]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            usage = chunk.get("usage") or usage
            if any(choice.get("delta", {}).get("content") for choice in chunk.get("choices", ())):
                stamps.append(time.perf_counter())
                first_cpu_s = first_cpu_s or server.cpu_s()
    if len(stamps) < 2:
        raise RuntimeError(f"an answer of {len(stamps)} pieces")
    return Answer(
        first_s=stamps[0],
        last_s=stamps[-1],
        first_cpu_s=first_cpu_s,
        num_tokens=usage.get("completion_tokens") or len(stamps),
        num_pieces=len(stamps),
        modes=tuple(usage.get("adaptive_kv", {}).get("tokens_by_mode", ())),
    )
