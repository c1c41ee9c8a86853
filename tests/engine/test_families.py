"""Greedy output equals transformers' own `generate`, token for token, for every family served."""

import functools
import random

import pytest
import torch
from driver import generate, make_store, start
from models import FAMILY_CONFIGS, prepared, prompt, stock

from adaptive_kv.engine.families import FAMILIES, permits
from adaptive_kv.engine.probe import probe
from adaptive_kv.policy import CacheMode

_NUM_NEW = 20
_LENGTHS = (3, 130, 17, 33, 64, 150, 48, 90)  # the longest lose pages to sliding windows of 32

families = pytest.mark.parametrize("family", sorted(FAMILIES))


@functools.cache
def _wanted(family: str, number: int) -> list[int]:
    """What transformers answers to prompt `number`."""
    ids = torch.tensor([_prompt(number)])
    generate_stock = stock(family).generate
    out = generate_stock(  # type: ignore[operator]
        ids, max_new_tokens=_NUM_NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    tokens: list[int] = out[0, ids.shape[1] :].tolist()
    return tokens


def _prompt(number: int) -> list[int]:
    return prompt(_LENGTHS[number], seed=number)


def test_every_family_that_is_served_is_tried_here() -> None:
    assert set(FAMILY_CONFIGS) == FAMILIES


@families
def test_the_probe_accepts_every_family(family: str) -> None:
    assert probe(prepared(family)) < 1e-5


@families
def test_a_sequence_alone_equals_generate(family: str) -> None:
    model, longest = prepared(family), _LENGTHS.index(max(_LENGTHS))
    live = start(make_store(model.groups), _prompt(longest))
    assert generate(model, [live], _NUM_NEW) == [_wanted(family, longest)]


@families
def test_eight_ragged_sequences_equal_generate_each(family: str) -> None:
    model = prepared(family)
    store = make_store(model.groups)
    lives = [start(store, _prompt(number)) for number in range(8)]
    assert generate(model, lives, _NUM_NEW) == [_wanted(family, number) for number in range(8)]
    assert all(live.cache.is_exact for live in lives)


@families
@pytest.mark.parametrize("detour", ["disabled", "park"])
def test_output_is_the_same_through_a_detour_at_random_steps(family: str, detour: str) -> None:
    model, rng = prepared(family), random.Random(f"{family} {detour}")
    store = make_store(model.groups)
    lives = [start(store, _prompt(number)) for number in range(4)]
    # The prompts take up to four steps: a detour may begin in the middle of a prefill.
    leaves = [rng.randrange(1, 16) for _ in lives]
    returns = [leave + rng.randrange(1, 5) for leave in leaves]

    def between(number: int) -> None:
        for live, leave, back in zip(lives, leaves, returns, strict=True):
            if number == leave and detour == "park":
                live.cache.drop()
            elif number == leave:
                live.cache.mode = CacheMode("disabled")
            elif number == back:
                live.cache.mode = CacheMode("full")
        store.check()

    assert generate(model, lives, _NUM_NEW, between) == [_wanted(family, n) for n in range(4)]
    assert all(live.cache.is_exact and not live.cache.mode.is_disabled for live in lives)


def test_latent_attention_is_served_in_exact_modes_only() -> None:
    modes = ("full", "disabled", "window:64", "int8", "window:64+int4")
    assert [permits("deepseek_v3", CacheMode(mode)) for mode in modes] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert all(permits("llama", CacheMode(mode)) for mode in modes)
