"""From what a client wrote to the requests that the engine is given."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adaptive_kv.engine.card import ModelCard
from adaptive_kv.engine.mailbox import Request, SamplingParams
from adaptive_kv.errors import RequestError
from adaptive_kv.policy import CacheMode
from adaptive_kv.server.refusals import refuse
from adaptive_kv.server.schemas import ChatRequest, CompletionRequest, Message, Sampled
from adaptive_kv.server.service import Service

DEFAULT_COMPLETION_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Engine requests in the order of their choices."""

    requests: tuple[Request, ...]
    num_prompt_tokens: int
    """Of all prompts, each counted once however many choices it has."""
    echoes: tuple[str, ...] = ()
    """Text to put before each choice; empty where nothing is echoed."""


async def prepare_chat(asked: ChatRequest, id_: str, service: Service) -> Prepared:
    """The requests of a chat. Raises `RequestError`."""
    _check(asked, service)
    messages = [_message(message, place) for place, message in enumerate(asked.messages)]
    prompt_ids = await _encode(service, service.prompts.encode_chat, messages)
    return Prepared(
        requests=_requests(asked, id_, [prompt_ids], service.card, None),
        num_prompt_tokens=len(prompt_ids),
    )


async def prepare_completion(asked: CompletionRequest, id_: str, service: Service) -> Prepared:
    """The requests of a completion, one per prompt and choice. Raises `RequestError`."""
    _check(asked, service)
    prompts = _prompts(asked.prompt, service.card.vocab_size)
    if len(prompts) * (asked.n or 1) > service.client.max_in_flight:
        message = f"too many prompts at once; ask for at most {service.client.max_in_flight}"
        raise refuse(message, param="prompt", code="too_many_prompts")
    all_ids = [
        await _encode(service, service.prompts.encode_text, prompt)
        if isinstance(prompt, str)
        else prompt
        for prompt in prompts
    ]
    return Prepared(
        requests=_requests(asked, id_, all_ids, service.card, DEFAULT_COMPLETION_TOKENS),
        num_prompt_tokens=sum(map(len, all_ids)),
        echoes=_echoes(asked, prompts, service) if asked.echo else (),
    )


def _echoes(
    asked: CompletionRequest, prompts: Sequence[str | tuple[int, ...]], service: Service
) -> tuple[str, ...]:
    """The prompt of every choice as text."""
    decode = service.prompts.decode
    texts = (prompt if isinstance(prompt, str) else decode(prompt) for prompt in prompts)
    return tuple(text for text in texts for _ in range(asked.n or 1))


def _check(asked: Sampled, service: Service) -> None:
    """What can be said before anything is encoded."""
    card = service.card
    if asked.model not in (None, card.name):
        message = f"no model {asked.model!r} here; this service has {card.name!r}"
        raise refuse(message, param="model", code="model_not_found", status=404)
    if (asked.n or 1) > service.client.max_in_flight:
        message = f"n: at most {service.client.max_in_flight} choices fit at once"
        raise refuse(message, param="n", code="invalid_value")
    if any(token_id >= card.vocab_size for token_id in asked.stop_token_ids or ()):
        raise _not_a_token("stop_token_ids", card.vocab_size)
    allow = asked.adaptive_kv.allow if asked.adaptive_kv else None
    if allow and not any(map(card.supports, allow)):
        message = f"none of these modes can be used with {card.name!r}"
        raise refuse(message, param="adaptive_kv.allow", code="mode_not_supported")


async def _encode(
    service: Service, encode: Callable[[Any], Sequence[int]], text: Any
) -> tuple[int, ...]:
    """Outside the loop's thread, so that a long prompt delays nobody's tokens."""
    async with service.encoding:
        return tuple(await asyncio.to_thread(encode, text))


def _message(message: Message, place: int) -> Mapping[str, str]:
    role = "system" if message.role == "developer" else message.role
    rendered = {"role": role, "content": _content(message.content, f"messages[{place}].content")}
    return rendered if message.name is None else {**rendered, "name": message.name}


def _content(content: object, param: str) -> str:
    if isinstance(content, list):
        parts = enumerate(content)
        return "".join(_part(part, f"{param}[{place}]") for place, part in parts)
    if isinstance(content, str):
        return content
    raise refuse(f"{param} must be text or a list of text parts", param=param, code="invalid_type")


def _part(part: object, param: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    message = f"{param}: this model reads text parts only"
    raise refuse(message, param=param, code="unsupported_content")


def _prompts(prompt: object, vocab_size: int) -> list[str | tuple[int, ...]]:
    """One or many prompts, each text or token ids."""
    if isinstance(prompt, list) and prompt and not _is_token_ids(prompt):
        return [_prompt(each, f"prompt[{i}]", vocab_size) for i, each in enumerate(prompt)]
    return [_prompt(prompt, "prompt", vocab_size)]


def _prompt(prompt: object, param: str, vocab_size: int) -> str | tuple[int, ...]:
    if prompt in ("", []):
        raise refuse(f"{param} is empty", param=param, code="empty_prompt")
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not _is_token_ids(prompt):
        message = f"{param} must be text, token ids, or a list of either"
        raise refuse(message, param=param, code="invalid_type")
    if not 0 <= min(prompt) <= max(prompt) < vocab_size:
        raise _not_a_token(param, vocab_size)
    return tuple(prompt)


def _is_token_ids(prompt: list[object]) -> bool:
    return all(type(token_id) is int for token_id in prompt)


def _not_a_token(param: str, vocab_size: int) -> RequestError:
    message = f"{param}: token ids of this model are 0 to {vocab_size - 1}"
    return refuse(message, param=param, code="invalid_value")


def _requests(
    asked: Sampled,
    id_: str,
    all_ids: Sequence[tuple[int, ...]],
    card: ModelCard,
    default_tokens: int | None,
) -> tuple[Request, ...]:
    num_choices = asked.n or 1
    allow = asked.adaptive_kv.allow if asked.adaptive_kv else None
    return tuple(
        Request(
            id=f"{id_}-{place * num_choices + choice}",
            prompt_ids=prompt_ids,
            sampling=_sampling(asked, _max_tokens(asked, prompt_ids, card, default_tokens), choice),
            allow=None if allow is None else frozenset[CacheMode](allow),
            priority=asked.adaptive_kv.priority if asked.adaptive_kv else 0,
        )
        for place, prompt_ids in enumerate(all_ids)
        for choice in range(num_choices)
    )


def _max_tokens(
    asked: Sampled, prompt_ids: Sequence[int], card: ModelCard, default_tokens: int | None
) -> int:
    """What the client permits, else the default as far as the context reaches."""
    param = "messages" if isinstance(asked, ChatRequest) else "prompt"
    if not prompt_ids:
        raise refuse("the prompt is empty", param=param, code="empty_prompt")
    left = card.max_context - len(prompt_ids)
    wanted = asked.most_tokens or asked.min_tokens or 1
    if wanted > left:
        message = (
            f"the context holds {card.max_context} tokens; the prompt has {len(prompt_ids)} "
            f"and {wanted} more are asked for. Shorten the prompt or lower max_tokens"
        )
        raise refuse(message, param=param, code="context_length_exceeded")
    if asked.most_tokens is not None:
        return asked.most_tokens
    return left if default_tokens is None else min(left, max(default_tokens, wanted))


def _sampling(asked: Sampled, max_tokens: int, choice: int) -> SamplingParams:
    given = {
        "min_tokens": asked.min_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": None if asked.top_k == -1 else asked.top_k,
        "min_p": asked.min_p,
        "repetition_penalty": asked.repetition_penalty,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
        "seed": None if asked.seed is None else asked.seed + choice,
        "stop": None if asked.stop is None else tuple(asked.stop),
        "stop_token_ids": None if asked.stop_token_ids is None else tuple(asked.stop_token_ids),
        "ignore_eos": asked.ignore_eos,
        "logprobs": asked.num_logprobs,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return SamplingParams(max_tokens=max_tokens, **chosen)
