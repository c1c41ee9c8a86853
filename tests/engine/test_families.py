"""The engine's greedy output equals transformers' own, token for token, for every family served."""

import random

import pytest
from engines import EXACT, Faults, Stand, check, check_empty, make_stand, wanted
from models import FAMILY_CONFIGS, prepared, prompt

from adaptive_kv.engine.families import FAMILIES, permits
from adaptive_kv.engine.probe import probe
from adaptive_kv.events import SequenceParked, SequenceResumed
from adaptive_kv.policy import CacheMode

_NUM_NEW = 20
_LENGTHS = (3, 130, 17, 33, 64, 150, 48, 90)  # the longest lose pages to sliding windows of 32
_STEP = {"max_tokens_per_step": 64}  # prompts take several steps: a detour may begin within one
_DISABLED = CacheMode("disabled")

families = pytest.mark.parametrize("family", sorted(FAMILIES))


def _assert_all_as_generate(stand: Stand, family: str) -> None:
    for id_, request in stand.requests.items():
        assert stand.output(id_) == wanted(request.prompt_ids, _NUM_NEW, family)
        assert stand.finished(id_).usage.exact
    check_empty(stand)


def _post(stand: Stand, num: int) -> None:
    for number in range(num):
        stand.post(prompt(_LENGTHS[number], seed=number), _NUM_NEW)


def test_every_family_that_is_served_is_tried_here() -> None:
    assert set(FAMILY_CONFIGS) == FAMILIES


@families
def test_the_probe_accepts_every_family(family: str) -> None:
    assert probe(prepared(family)) < 1e-5


@families
def test_a_sequence_alone_equals_generate(family: str) -> None:
    stand, longest = make_stand(prepared(family)), _LENGTHS.index(max(_LENGTHS))
    stand.post(prompt(_LENGTHS[longest], seed=longest), _NUM_NEW)
    stand.run()
    _assert_all_as_generate(stand, family)


@families
def test_eight_ragged_sequences_equal_generate_each(family: str) -> None:
    stand = make_stand(prepared(family), server=_STEP)
    _post(stand, 8)
    stand.step()
    assert len(stand.scheduler.running) == 8
    stand.run()
    _assert_all_as_generate(stand, family)


@families
def test_full_disabled_full_at_random_steps_changes_no_token(family: str) -> None:
    rng = random.Random(f"{family} disabled")
    stand = make_stand(prepared(family), cache=EXACT, server=_STEP)
    _post(stand, 4)
    while stand.unfinished and stand.num_steps < 300:
        stand.pin("disabled")
        stand.step(rng.randrange(1, 5))
        check(stand)
        stand.pin("full")
        stand.step(rng.randrange(1, 9))
        check(stand)
    usages = [stand.finished(id_).usage for id_ in stand.requests]
    assert all(usage.switches >= 2 and usage.tokens_by_mode[_DISABLED] for usage in usages)
    _assert_all_as_generate(stand, family)


@families
def test_full_park_full_at_random_steps_changes_no_token(family: str) -> None:
    """A device that refuses now and then what was asked for; there is no lower rung to go to."""
    rng = random.Random(f"{family} park")
    faults = Faults(failing=lambda _: rng.random() < 0.33)
    stand = make_stand(prepared(family), faults=faults, cache={"ladder": ("full",)}, server=_STEP)
    _post(stand, 4)
    while stand.unfinished and stand.num_steps < 400:
        stand.step()
        check(stand)
    assert len(stand.of_type(SequenceParked)) == len(stand.of_type(SequenceResumed)) > 0
    _assert_all_as_generate(stand, family)


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
