"""Recall tasks: codes stated early in a long chat and asked for late.

A fact is a line "Remember: the code of falcon is copper."; after text that has nothing to do with
it comes "What is the code of falcon?", answered by "The code of falcon is copper."
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from demo_tokenizer import ASSISTANT, BOS, END, USER, encode, plain_words, special_id
from transformers import PreTrainedTokenizerFast

_NAMES_TEXT = (
    "falcon otter badger heron lynx marten raven salmon beaver walrus condor gecko jaguar koala "
    "lemur moose newt osprey panda quail rabbit seal tiger urchin viper weasel yak zebra hedgehog "
    "dolphin eagle ferret giraffe hornet iguana jackal kestrel lobster magpie narwhal octopus "
    "pelican raccoon sparrow turtle vulture wombat bison camel donkey elephant flamingo gorilla "
    "hamster leopard mongoose ostrich penguin reindeer squirrel toucan wolf cobra crane"
)
NAMES = tuple(_NAMES_TEXT.split())
_CODES_TEXT = (
    "copper silver amber cobalt crimson emerald ivory jade lilac maroon olive pearl ruby saffron "
    "teal violet walnut almond basil cedar clover daisy elm fern ginger hazel iris juniper laurel "
    "maple nutmeg orchid pepper quince rose sage thyme tulip willow anchor basket candle dagger "
    "engine feather guitar hammer island jacket kettle lantern mirror needle orange paddle quilt "
    "ribbon saddle ticket umbrella valley window yarn anvil barrel canyon desert ember forest "
    "glacier harbor igloo jungle kingdom lagoon meadow nebula ocean prairie quarry river summit "
    "thunder tundra volcano waterfall bridge castle cottage fountain garden lighthouse market "
    "palace station temple tower village windmill acorn bamboo cactus granite marble velvet cotton "
    "linen satin leather bronze iron nickel zinc carbon neon argon helium comet planet meteor "
    "galaxy rocket saturn venus mercury"
)
CODES = tuple(_CODES_TEXT.split())
FACT_TEXTS = tuple(f"Remember: the code of {w} is {w}.\n" for w in NAMES + CODES)


@dataclass(slots=True)
class Row:
    """Token ids with the weight of predicting each of them."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, ids: Sequence[int], weight: float) -> None:
        """Appends `ids`, each predicted with `weight`."""
        self.ids.extend(ids)
        self.weights.extend([weight] * len(ids))


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt of exact length and the answer that full recall gives, both token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class RecallMaker:
    """Makes recall rows out of a stream of filler token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, filler: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._filler = filler
        self._words = plain_words(tokenizer)
        self._newline = encode(tokenizer, "\n")
        self._bos, self._end, self._user, self._assistant = (
            [special_id(tokenizer, token)] for token in (BOS, END, USER, ASSISTANT)
        )

    def row(self, rng: random.Random, num_tokens: int, num_queries: int, variety: float) -> Row:
        """Returns a chat of about `num_tokens` that states codes and asks for each of them once.

        `variety` is the share of names and codes that come from beyond the two word lists.
        """
        facts = self._facts(rng, num_queries, variety)
        asked = rng.sample(facts, len(facts))
        cost = sum(len(self._fact(*fact)) + len(self._turn(*fact)) for fact in facts)
        pieces = self._cut(rng, max(num_tokens - cost - 8, 0), len(facts) * 2)
        row = Row()
        row.add([*self._bos, *self._user], 0.0)
        spread = rng.choice((0, 0, 1))
        for index, (name, code) in enumerate(facts):
            row.add(self._fact(name, code), 0.0)
            if spread:
                row.add(self._text(rng, pieces[index]), 1.0)
        for index, (name, code) in enumerate(asked):
            if index:
                row.add(self._user, 0.0)
            share = pieces[len(facts) + index] + (0 if spread else pieces[index])
            row.add(self._text(rng, share), 1.0)
            self._ask(row, name, code)
        return row

    def drill(self, rng: random.Random, num_tokens: int, num_facts: int, variety: float) -> Row:
        """Returns a chat without other text that repeats its facts until `num_tokens` are reached.

        Dense repetition makes a tiny model discover the lookup within minutes.
        """
        facts = self._facts(rng, num_facts, variety)
        row = Row()
        row.add([*self._bos, *self._user], 0.0)
        for fact in facts:
            row.add(self._fact(*fact), 0.0)
        while len(row.ids) < num_tokens:
            name, code = rng.choice(facts)
            if rng.random() < 0.6:
                self._state(row, ("Remember: the code", name, code, ".\n"))
            else:
                self._ask(row, name, code)
                row.add(self._user, 0.0)
        return row

    def echo(self, rng: random.Random, num_tokens: int) -> Row:
        """Returns a few random words said again and again until `num_tokens` are reached."""
        words = rng.sample(NAMES + CODES, rng.randint(6, 24))
        said = [token for word in words for token in encode(self._tokenizer, f" {word}")]
        row = Row()
        row.add([*self._bos, *said], 0.0)
        while len(row.ids) < num_tokens:
            row.add(said, 1.0)
        return row

    def task(self, rng: random.Random, num_tokens: int, num_facts: int = 4) -> Task:
        """Returns a task whose facts all stand at the start and whose question is at the end."""
        facts = self._facts(rng, num_facts, 0.0)
        name, code = rng.choice(facts)
        head = [*self._bos, *self._user]
        head += [token for fact in facts for token in self._fact(*fact)]
        tail = [*self._question(name), *self._end, *self._assistant]
        prompt = head + self._text(rng, num_tokens - len(head) - len(tail)) + tail
        return Task(tuple(prompt), (*self._answer(name, code), *self._end))

    def _facts(self, rng: random.Random, count: int, variety: float) -> list[tuple[str, str]]:
        names: set[str] = set()
        while len(names) < count:
            names.add(rng.choice(self._words if rng.random() < variety else NAMES))
        return [
            (name, self._code(rng, variety)) for name in sorted(names, key=lambda _: rng.random())
        ]

    def _code(self, rng: random.Random, variety: float) -> str:
        if rng.random() >= variety:
            return rng.choice(CODES)
        return rng.choice(self._words) if rng.random() < 0.6 else str(rng.randrange(100, 1000))

    def _cut(self, rng: random.Random, total: int, count: int) -> list[int]:
        cuts = sorted(rng.randint(0, total) for _ in range(count - 1))
        return [high - low for low, high in zip([0, *cuts], [*cuts, total], strict=True)]

    def _text(self, rng: random.Random, num_tokens: int) -> list[int]:
        if num_tokens < 2:
            return self._newline * num_tokens
        start = rng.randrange(len(self._filler) - num_tokens)
        return [*self._filler[start : start + num_tokens - 1], *self._newline]

    def _fact(self, name: str, code: str) -> list[int]:
        return encode(self._tokenizer, f"Remember: the code of {name} is {code}.\n")

    def _question(self, name: str) -> list[int]:
        return encode(self._tokenizer, f"What is the code of {name}?")

    def _answer(self, name: str, code: str) -> list[int]:
        return encode(self._tokenizer, f"The code of {name} is {code}.")

    def _turn(self, name: str, code: str) -> list[int]:
        return [0, 0, 0, *self._question(name), *self._answer(name, code)]

    def _ask(self, row: Row, name: str, code: str) -> None:
        row.add([*self._question(name), *self._end, *self._assistant], 0.0)
        self._state(row, ("The code", name, code, "."))
        row.add(self._end, 0.5)

    def _state(self, row: Row, parts: tuple[str, str, str, str]) -> None:
        opening, name, code, ending = parts
        row.add(encode(self._tokenizer, f"{opening} of {name} is"), 0.5)
        row.add(encode(self._tokenizer, f" {code}"), 8.0)
        row.add(encode(self._tokenizer, ending), 0.5)
