"""From token ids to text up to a stop string, and from prompts to token ids."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from adaptive_kv.engine.detokenizer import Detokenizer
from adaptive_kv.errors import Refusal, RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StopMatcher:
    """Cuts a stream of text at the earliest place where one of `stops` begins."""

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """The text that no stop string can claim any more, and whether one was found."""
        if not self._stops or self.is_stopped:
            return ("", True) if self.is_stopped else (text, False)
        text = self._held + text
        found, begun = self._found(text), self._begun(text)
        self.is_stopped = found <= begun and found < len(text)
        cut = min(found, begun)
        self._held = "" if self.is_stopped else text[cut:]
        return text[:cut], self.is_stopped

    def flush(self) -> str:
        """What was held back, when no more text comes; may yet find a stop string in it."""
        found = self._found(self._held)
        self.is_stopped = self.is_stopped or found < len(self._held)
        text, self._held = self._held[:found], ""
        return text

    def _found(self, text: str) -> int:
        """Where the first whole stop string begins, or the text's length."""
        places = (text.find(stop) for stop in self._stops)
        return min((place for place in places if place >= 0), default=len(text))

    def _begun(self, text: str) -> int:
        """Where the first stop string begins that the text's end cuts short, or its length."""
        reach = max(map(len, self._stops)) - 1
        for place in range(max(len(text) - reach, 0), len(text)):
            end = text[place:]
            if any(len(stop) > len(end) and stop.startswith(end) for stop in self._stops):
                return place
        return len(text)


@dataclass(frozen=True, slots=True)
class TextStep:
    """What one token added: final text, and whether a stop string ended the output."""

    text: str
    is_stopped: bool = False


class TextStream:
    """The text of one sequence, up to its first stop string.

    Push every committed token but the one that ends the sequence (end of sequence, a stop token).
    Stop strings count only in the text that comes after the first `min_tokens` tokens. To rebuild
    it, push the output again.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        prompt_ids: Sequence[int] = (),
        stops: Iterable[str] = (),
        min_tokens: int = 0,
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt_ids)
        self._matcher = StopMatcher(stops)
        self._num_exempt = min_tokens

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found; `finish` may still find one."""
        return self._matcher.is_stopped

    def push(self, token_id: int) -> TextStep:
        """One more token."""
        text = self._detokenizer.push(token_id)
        if self._num_exempt > 0:
            self._num_exempt -= 1
            return TextStep(text)
        return TextStep(*self._matcher.push(text))

    def finish(self) -> str:
        """What was held back, when no more tokens come; never any part of a stop string."""
        text, _ = self._matcher.push(self._detokenizer.flush())
        return text + self._matcher.flush()


class PromptEncoder:
    """Prompts to token ids and back; any thread, also while a `TextStream` decodes in another.

    Switches off truncation and padding of `tokenizer` for good: switching them per call is what
    threads could collide on, and no prompt may be cut silently.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        self._anchor = self._encode("a", adds_special=False)[-1:]
        self._anchor_text = self._decode(self._anchor)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of a bare prompt, with the special tokens that the tokenizer adds."""
        return self._encode(text, adds_special=True)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Token ids of a chat up to where the assistant answers. Raises `RequestError`."""
        return self._encode(self._render(messages), adds_special=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special ones included; a single one as `token_text`."""
        return self.token_text(token_ids[0]) if len(token_ids) == 1 else self._decode(token_ids)

    def token_text(self, token_id: int) -> str:
        """Text of one token within a text, leading space included; special tokens by name."""
        text = self._decode([*self._anchor, token_id])
        if text.startswith(self._anchor_text):
            return text[len(self._anchor_text) :]
        return self._decode([token_id])

    def _encode(self, text: str, *, adds_special: bool) -> tuple[int, ...]:
        with self._lock:
            encoded = self._tokenizer(text, add_special_tokens=adds_special, verbose=False)
        return tuple(encoded["input_ids"])

    def _decode(self, token_ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        try:
            template = self._tokenizer.get_chat_template()
        except ValueError:
            message = "this model has no chat template; send the prompt to /v1/completions"
            raise _refuse(message, "chat_template_missing") from None
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            message = f"the model's chat template refuses these messages: {error}"
            raise _refuse(message, "invalid_messages") from error
        assert isinstance(text, str)
        return text


def _refuse(message: str, code: str) -> RequestError:
    return RequestError(Refusal(message, param="messages", code=code))
