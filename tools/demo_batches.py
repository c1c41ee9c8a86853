"""Batches for the demo model: library text, short chats and recall tasks, mixed by a schedule."""

import random
from array import array
from dataclasses import dataclass

import torch
from demo_corpus import Corpus, Exchange
from demo_network import MAX_POSITIONS
from demo_recall import FACT_TEXTS, RecallMaker, Row
from demo_tokenizer import ASSISTANT, BOS, END, SYSTEM, USER, encode, special_id
from torch import Tensor
from transformers import PreTrainedTokenizerFast

_SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer briefly.", "You know Python well.")


@dataclass(frozen=True, slots=True)
class Phase:
    """How batches look until `end`, a share of the whole training.

    `echo`, `drill`, `recall` and `chat` are shares of the rows; library text has the rest.
    `size` scales the tokens of a batch, `gaps` is the share of rows whose positions jump, and
    `variety` the share of codes beyond the word lists.
    """

    end: float
    lengths: tuple[int, ...]
    size: float
    echo: float
    drill: float
    recall: float
    chat: float
    gaps: float
    variety: float


SCHEDULE = (
    Phase(0.10, (128,), 0.5, 0.05, 0.45, 0.35, 0.05, 0.0, 0.0),
    Phase(0.35, (256,), 1.0, 0.00, 0.10, 0.30, 0.20, 0.2, 0.1),
    Phase(0.70, (256, 512), 1.0, 0.00, 0.00, 0.30, 0.30, 0.3, 0.1),
    Phase(1.00, (256, 512, 2048), 1.0, 0.00, 0.00, 0.30, 0.30, 0.2, 0.1),
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Ids and positions of shape (rows, length + 1); weights of shape (rows, length)."""

    ids: Tensor
    positions: Tensor
    weights: Tensor


def phase_at(progress: float) -> Phase:
    """Returns the phase in force at `progress`, 0 to 1."""
    return next((phase for phase in SCHEDULE if progress < phase.end), SCHEDULE[-1])


def tokenizer_texts(corpus: Corpus) -> list[str]:
    """Returns what the tokenizer learns from; recall words repeat until they are one token each."""
    chats = [f"{exchange.question}\n{exchange.answer}" for exchange in corpus.exchanges]
    return [*corpus.documents, *chats, *FACT_TEXTS * 250]


class Sampler:
    """Draws batches; the batch of a step depends on the seed, the step and the phase alone."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._special = {
            token: special_id(tokenizer, token) for token in (BOS, END, SYSTEM, USER, ASSISTANT)
        }
        self._text = array("H")
        for document in corpus.documents:
            self._text.extend(
                [self._special[BOS], *encode(tokenizer, document), self._special[END]]
            )
        self._chats = [self._chat(exchange) for exchange in corpus.exchanges]
        self._well_known = [self._chat(e) for e in corpus.exchanges if e.is_well_known]
        self.recall = RecallMaker(tokenizer, self._text)

    @property
    def num_tokens(self) -> int:
        """Distinct tokens of text and chats."""
        return len(self._text) + sum(
            len(question) + len(answer) for question, answer in self._chats
        )

    def batch(self, step: int, phase: Phase, num_tokens: int) -> Batch:
        """Returns about `num_tokens` tokens in rows of one of the phase's lengths."""
        rng = random.Random(f"{self._seed} {step}")
        length = phase.lengths[step % len(phase.lengths)]
        num_rows = max(1, int(num_tokens * phase.size) // length)
        rows = [self._row(rng, phase, length + 1) for _ in range(num_rows)]
        positions = [self._positions(rng, phase, length + 1) for _ in range(num_rows)]
        return Batch(
            torch.tensor([row.ids for row in rows]),
            torch.tensor(positions),
            torch.tensor([row.weights[1:] for row in rows]),
        )

    def _row(self, rng: random.Random, phase: Phase, size: int) -> Row:
        names = ("echo", "drill", "recall", "chat", "text")
        shares = (phase.echo, phase.drill, phase.recall, phase.chat)
        kind = rng.choices(names, [*shares, 1.0 - sum(shares)])[0]
        if kind == "echo":
            row = self.recall.echo(rng, size)
        elif kind == "drill":
            row = self.recall.drill(rng, size, rng.randint(2, max(3, size // 32)), phase.variety)
        elif kind == "recall":
            most = min(12, max(2, size // 50))
            row = self.recall.row(rng, size, rng.randint(min(3, most), most), phase.variety)
        elif kind == "chat":
            row = self._chat_row(rng, size)
        else:
            start = rng.randrange(len(self._text) - size)
            row = Row(list(self._text[start : start + size]), [1.0] * size)
        missing = size - len(row.ids)
        row.add([self._special[END]] * missing, 0.0)
        return Row(row.ids[:size], row.weights[:size])

    def _positions(self, rng: random.Random, phase: Phase, size: int) -> list[int]:
        positions = list(range(size))
        if rng.random() < phase.gaps:
            room = MAX_POSITIONS - size
            for cut in (0, rng.randrange(size), rng.randrange(size)):
                jump = rng.randint(0, room // 3)
                positions[cut:] = [position + jump for position in positions[cut:]]
        return positions

    def _chat(self, exchange: Exchange) -> tuple[list[int], list[int]]:
        return encode(self._tokenizer, exchange.question), encode(self._tokenizer, exchange.answer)

    def _chat_row(self, rng: random.Random, size: int) -> Row:
        row = Row()
        special = self._special
        while len(row.ids) < size:
            question, answer = rng.choice(rng.choice((self._chats, self._well_known)))
            row.add([special[BOS]], 0.0)
            if rng.random() < 0.3:
                prompt = encode(self._tokenizer, rng.choice(_SYSTEM_PROMPTS))
                row.add([special[SYSTEM], *prompt, special[END]], 0.0)
            row.add([special[USER], *question, special[END], special[ASSISTANT]], 0.0)
            row.add([*answer, special[END]], 1.0)
        return row
