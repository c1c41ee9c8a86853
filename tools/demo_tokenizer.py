"""The tokenizer of the demo model: byte-level BPE, digits one by one, roles as special tokens."""

import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
_SPECIAL = [BOS, END, PAD, SYSTEM, USER, ASSISTANT]
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CHAT_TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role in ('system', 'developer') -%}{{- '<|system|>' -}}
{%- elif message.role == 'user' -%}{{- '<|user|>' -}}
{%- elif message.role == 'assistant' -%}{{- '<|assistant|>' -}}
{%- else -%}{{- raise_exception('role must be system, user or assistant') -}}
{%- endif -%}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}{%- for part in message.content -%}{{- part.text -}}{%- endfor -%}
{%- endif -%}
{{- eos_token -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
_DULL_TEXT = (
    "this that with from have will when which then than them they their there these those "
    "been were what your into only also some such must does each here should would could "
    "because other using where about after before being both else most more very just "
    "code remember none true false"
)
_DULL_WORDS = frozenset(_DULL_TEXT.split())


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learns the merges from `texts`; every UTF-8 text survives encoding and decoding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return _wrap(tokenizer)


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    make: Any = PreTrainedTokenizerFast  # not annotated
    made: PreTrainedTokenizerFast = make(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        padding_side="left",
    )
    return made


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Returns the ids of `text` without a leading beginning-of-sequence token."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def plain_words(tokenizer: PreTrainedTokenizerFast) -> tuple[str, ...]:
    """Returns the ordinary words of 4 to 9 letters that are one token each, sorted."""
    tokens = (token for token in tokenizer.get_vocab() if re.fullmatch(r"Ġ[a-z]{4,9}", token))
    return tuple(sorted({token[1:] for token in tokens} - _DULL_WORDS))


def special_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of a token that stands for itself alone."""
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number
