"""From token ids to text, one token at a time: no character that a later token could change."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NUM_CONTEXT = 5
"""Prompt tokens that decide how the first output token is spelled, as in vLLM."""
_MAX_HELD = 3
"""Tokens that an incomplete UTF-8 character can span."""


class Detokenizer:
    """The text of one sequence's output, token by token, at a constant cost per token.

    All that `push` and `flush` return, joined, is what `tokenizer.decode` makes of the output, as
    it follows the prompt, without special tokens. A window of recent tokens is decoded, since a
    token's text depends on its neighbours: a leading space, a character made of several tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._backend = _decoder(tokenizer)
        self._has_bytes = tokenizer.convert_tokens_to_ids("<0x00>") not in {
            None,
            tokenizer.unk_token_id,
        }
        # The window is [tokens whose text is out | held tokens].
        self._window = list(prompt_ids[-_NUM_CONTEXT:])
        self._text = self._shown = self._decode(self._window)
        self._num_held = self._num_begun()

    def push(self, token_id: int) -> str:
        """The text that this token completes: often its own, sometimes none or more."""
        text = self._decode([*self._window, token_id])
        if self._is_silent(token_id, text):
            return ""
        self._window.append(token_id)
        self._num_held += 1
        self._text = text
        return self._release() if self._is_whole() else self._hold()

    def flush(self) -> str:
        """What was held back, when no more tokens come."""
        added = self._added()
        self._shown = self._text
        return added

    def _decode(self, token_ids: Sequence[int], *, skips: bool = True) -> str:
        return self._backend(list(token_ids), skip_special_tokens=skips)

    def _is_silent(self, token_id: int, text: str) -> bool:
        """Whether a token can be forgotten, so that many of them do not lengthen the window."""
        if text != self._text:
            return False
        if text and not text.endswith(_UNKNOWN):
            return True
        is_known = self._tokenizer.convert_ids_to_tokens(token_id) is not None
        is_special = not self._decode([token_id]) and bool(self._decode([token_id], skips=False))
        return is_special or not is_known

    def _is_whole(self) -> bool:
        """Whether no later token can change the text."""
        if not self._text.endswith(_UNKNOWN):
            return True
        return self._has_bytes and not _is_incomplete(self._last_bytes(self._num_held))

    def _num_begun(self) -> int:
        """Byte tokens at the end of the prompt that begin a character."""
        if not self._has_bytes or not self._text.endswith(_UNKNOWN):
            return 0
        lengths = range(1, _MAX_HELD + 1)
        return next((n for n in lengths if _is_incomplete(self._last_bytes(n))), 0)

    def _last_bytes(self, num_tokens: int) -> bytes:
        """The bytes at the end of the last tokens, of those tokens that stand for one byte each."""
        pieces = self._tokenizer.convert_ids_to_tokens(self._window[-num_tokens:])
        found = b""
        for piece in reversed(pieces):
            match = _BYTE_PIECE.fullmatch(piece)
            if match is None:
                break
            found = bytes.fromhex(match[1]) + found
        return found

    def _release(self) -> str:
        added = self._added()
        if added:
            self._keep(self._num_held)
            self._num_held = 0
            self._shown = self._text
        return added

    def _hold(self) -> str:
        """Show what is final although the text ends within a character, or seems to."""
        is_long = self._num_held > _MAX_HELD and not self._has_bytes
        final = self._text[:-1] if is_long else self._text.rstrip(_UNKNOWN)
        added = final[len(self._shown) :] if final.startswith(self._shown) else ""
        self._shown += added
        if is_long:
            self._keep(_MAX_HELD)
            self._num_held = _MAX_HELD
            self._shown = self._text[:-1]
        return added

    def _added(self) -> str:
        if self._text.startswith(self._shown):
            return self._text[len(self._shown) :]
        if self._shown.endswith(_UNKNOWN):  # the prompt ended within a character
            return self._text[_num_shared(self._shown, self._text) :]
        # Stray bytes made the decoder give up characters that are out already.
        return self._decode(self._window[-self._num_held :])

    def _keep(self, num_tokens: int) -> None:
        self._window = self._window[-num_tokens:]
        self._text = self._decode(self._window)


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[..., str]:
    """What turns ids into text, without what transformers does around it where that is nothing.

    Its way to the same library function takes 15 times as long as the function.
    """
    kind = type(tokenizer)
    is_plain = kind.decode is PreTrainedTokenizerBase.decode
    if is_plain and getattr(kind, "_decode", None) is PreTrainedTokenizerFast._decode:  # noqa: SLF001
        decode: Callable[..., str] = tokenizer.backend_tokenizer.decode
        return decode
    return cast("Callable[..., str]", partial(tokenizer.decode, clean_up_tokenization_spaces=False))


def _is_incomplete(text: bytes) -> bool:
    """Whether more bytes could make it valid UTF-8, and it is not yet."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _num_shared(one: str, other: str) -> int:
    """Characters that two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
