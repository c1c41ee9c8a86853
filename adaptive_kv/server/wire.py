"""OpenAI's answers, whole and in chunks.

Chunks are put together from ready-made JSON text: this runs beside the token loop, once per token.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from adaptive_kv.engine.mailbox import Delta, Finished, TokenLogprob, Usage
from adaptive_kv.policy import CacheMode

DONE = b"data: [DONE]\n\n"
_LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not know."""


@dataclass(slots=True)
class Choice:
    """One answer as it grows."""

    index: int
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_chars: int = 0
    """Sent so far; where the next token's text begins."""
    reason: str | None = None
    usage: Usage | None = None

    def add(self, delta: Delta) -> None:
        """Take in what one step added."""
        self.text.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs

    def end(self, finished: Finished) -> None:
        """Nothing comes after this."""
        self.reason = finished.reason
        self.usage = finished.usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire(ABC):
    """One request's answers; the two kinds differ in a few words."""

    whole: ClassVar[str]
    chunked: ClassVar[str]

    id: str
    model: str
    created_s: int
    decode: Callable[[Sequence[int]], str]
    num_prompt_tokens: int
    shows_token_ids: bool = False
    shows_logprobs: bool = False
    ends_with_usage: bool = False
    counts_along: bool = False
    """Whether every chunk reports the usage so far."""

    @abstractmethod
    def first(self, choice: Choice) -> bytes:
        """The chunk that opens a choice; may be empty."""
        ...

    def delta(self, choice: Choice, delta: Delta, num_tokens: int) -> bytes:
        """The chunk for one step; `choice` is as it was before, `num_tokens` are out in all.

        Empty where the step gave nothing to show.
        """
        shown = ""
        if self.shows_logprobs and delta.logprobs:
            shown = f',"logprobs":{json.dumps(self._logprobs(delta.logprobs, choice.num_chars))}'
        if self.shows_token_ids:
            shown += f',"token_ids":{json.dumps(delta.token_ids)}'
        if not delta.text and not shown:
            return b""
        return self._chunk(choice.index, self._text(delta.text) + shown, "null", num_tokens)

    def last(self, choice: Choice, num_tokens: int) -> bytes:
        """The chunk that closes a choice with its reason."""
        shown = ',"token_ids":[]' if self.shows_token_ids else ""
        return self._chunk(
            choice.index, self._text("") + shown, json.dumps(choice.reason), num_tokens
        )

    def usage(self, choices: Sequence[Choice]) -> bytes:
        """The chunk after all choices, where the client asked for it."""
        usage = json.dumps(usage_body(self.num_prompt_tokens, choices))
        return f'data: {self._head()}"choices":[],"usage":{usage}}}\n\n'.encode()

    def body(self, choices: Sequence[Choice]) -> str:
        """The whole answer at once."""
        answer = {
            "id": self.id,
            "object": self.whole,
            "created": self.created_s,
            "model": self.model,
            "choices": [self._choice(choice) for choice in choices],
            "usage": usage_body(self.num_prompt_tokens, choices),
        }
        return json.dumps(answer)

    def _head(self) -> str:
        return (
            f'{{"id":"{self.id}","object":"{self.chunked}","created":{self.created_s},'
            f'"model":{json.dumps(self.model)},'
        )

    def _chunk(self, index: int, payload: str, reason: str, num_tokens: int) -> bytes:
        logprobs = "" if '"logprobs":' in payload else ',"logprobs":null'
        usage = ',"usage":null' if self.ends_with_usage else ""
        if self.counts_along:
            usage = f',"usage":{json.dumps(_token_counts(self.num_prompt_tokens, num_tokens))}'
        return (
            f'data: {self._head()}"choices":[{{"index":{index},{payload}{logprobs},'
            f'"finish_reason":{reason}}}]{usage}}}\n\n'
        ).encode()

    def _choice(self, choice: Choice) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "index": choice.index,
            **self._answer(choice),
            "logprobs": self._logprobs(choice.logprobs, 0) if self.shows_logprobs else None,
            "finish_reason": choice.reason,
        }
        return {**shown, "token_ids": choice.token_ids} if self.shows_token_ids else shown

    @abstractmethod
    def _text(self, text: str) -> str: ...

    @abstractmethod
    def _answer(self, choice: Choice) -> dict[str, Any]: ...

    @abstractmethod
    def _logprobs(self, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]: ...


class ChatWire(Wire):
    """`/v1/chat/completions`."""

    __slots__ = ()
    whole = "chat.completion"
    chunked = "chat.completion.chunk"

    def first(self, choice: Choice) -> bytes:
        """Says who speaks."""
        payload = '"delta":{"role":"assistant","content":"","refusal":null}'
        return self._chunk(choice.index, payload, "null", 0)

    def _text(self, text: str) -> str:
        return f'"delta":{{"content":{json.dumps(text)}}}' if text else '"delta":{}'

    def _answer(self, choice: Choice) -> dict[str, Any]:
        content = "".join(choice.text)
        return {"message": {"role": "assistant", "content": content, "refusal": None}}

    def _logprobs(self, logprobs: Sequence[TokenLogprob], _offset: int) -> dict[str, Any]:
        content = [
            {
                **self._token(token.token_id, token.logprob),
                "top_logprobs": [self._token(*alternative) for alternative in token.top],
            }
            for token in logprobs
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self.decode([token_id])
        whole = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": max(logprob, _LOWEST_LOGPROB), "bytes": whole}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionWire(Wire):
    """`/v1/completions`; `echoes` stand before the choices' texts."""

    whole = "text_completion"
    chunked = "text_completion"

    echoes: tuple[str, ...] = ()

    def first(self, choice: Choice) -> bytes:
        """The prompt, where it is to be echoed."""
        if not self.echoes:
            return b""
        return self._chunk(choice.index, self._text(self.echoes[choice.index]), "null", 0)

    def _text(self, text: str) -> str:
        return f'"text":{json.dumps(text)}'

    def _answer(self, choice: Choice) -> dict[str, Any]:
        echo = self.echoes[choice.index] if self.echoes else ""
        return {"text": echo + "".join(choice.text)}

    def _logprobs(self, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        tokens = [self.decode([token.token_id]) for token in logprobs]
        offsets = [offset]
        for text in tokens[:-1]:
            offsets.append(offsets[-1] + len(text))
        return {
            "tokens": tokens,
            "token_logprobs": [max(token.logprob, _LOWEST_LOGPROB) for token in logprobs],
            "top_logprobs": [self._alternatives(token.top) for token in logprobs],
            "text_offset": offsets[: len(tokens)],
        }

    def _alternatives(self, top: Iterable[tuple[int, float]]) -> dict[str, float]:
        return {self.decode([id_]): max(logprob, _LOWEST_LOGPROB) for id_, logprob in top}


def usage_body(num_prompt_tokens: int, choices: Sequence[Choice]) -> dict[str, Any]:
    """OpenAI's `usage` of finished choices, with our own part."""
    usages = [choice.usage for choice in choices if choice.usage is not None]
    tokens_by_mode: dict[CacheMode, int] = {}
    for usage in usages:
        for mode, num_tokens in usage.tokens_by_mode.items():
            tokens_by_mode[mode] = tokens_by_mode.get(mode, 0) + num_tokens
    return {
        **_token_counts(num_prompt_tokens, sum(usage.num_output_tokens for usage in usages)),
        "prompt_tokens_details": {"cached_tokens": _num_cached(num_prompt_tokens, usages)},
        "adaptive_kv": {
            "tokens_by_mode": tokens_by_mode,
            "switches": sum(usage.switches for usage in usages),
            "exact": all(usage.exact for usage in usages),
        },
    }


def _num_cached(num_prompt_tokens: int, usages: Sequence[Usage]) -> int:
    """Of all prompts; of one with several choices, which come together, as the first found it."""
    num_choices = sum(usage.num_prompt_tokens for usage in usages) // num_prompt_tokens
    return sum(usage.num_cached_tokens for usage in usages[:: max(1, num_choices)])


def _token_counts(num_prompt_tokens: int, num_output_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_output_tokens,
        "total_tokens": num_prompt_tokens + num_output_tokens,
    }
