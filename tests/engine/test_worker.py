"""The engine as a whole: requests in by mail, tokens out, whatever the cache does meanwhile."""

import random

import pytest
from engines import EXACT, Stand, check, check_empty, is_as_wanted, lengths, make_stand, wanted
from models import prompt


def _post_ragged(stand: Stand, num: int = 8, num_tokens: int = 12) -> list[str]:
    return [stand.post(prompt(n, seed=n), num_tokens) for n in lengths(num)]


def _assert_all_as_generate(stand: Stand) -> None:
    for id_, request in stand.requests.items():
        assert stand.output(id_) == wanted(request.prompt_ids, request.sampling.max_tokens)
        assert stand.finished(id_).usage.exact
    check_empty(stand)


def test_a_request_alone_is_answered_as_by_generate() -> None:
    stand = make_stand()
    id_ = stand.post(prompt(50), 24)
    stand.run()
    assert stand.output(id_) == wanted(tuple(prompt(50)), 24)
    assert stand.finished(id_).reason == "length"
    check_empty(stand)


def test_eight_ragged_requests_at_once_are_answered_as_by_generate() -> None:
    stand = make_stand(server={"max_tokens_per_step": 48})
    _post_ragged(stand)
    stand.step()
    assert len(stand.scheduler.running) == 8
    stand.run()
    _assert_all_as_generate(stand)


def test_requests_that_come_while_others_decode_disturb_nobody() -> None:
    stand = make_stand(server={"max_tokens_per_step": 48})
    for n in lengths(8):
        stand.post(prompt(n, seed=n), 12)
        stand.step(3)
    stand.run()
    _assert_all_as_generate(stand)


def test_a_prompt_longer_than_a_step_runs_in_chunks() -> None:
    stand = make_stand(server={"max_tokens_per_step": 16})
    id_ = stand.post(prompt(100), 5)
    stand.step(6)
    assert stand.output(id_) == []
    stand.step()
    assert len(stand.output(id_)) == 1
    stand.run()
    _assert_all_as_generate(stand)


@pytest.mark.parametrize("seed", range(4))
def test_full_disabled_full_at_random_steps_changes_no_token(seed: int) -> None:
    rng = random.Random(seed)
    stand = make_stand(cache=EXACT, server={"max_tokens_per_step": 64})
    _post_ragged(stand, 5)
    stand.step(rng.randrange(1, 8))
    stand.pin("disabled")
    stand.step(rng.randrange(1, 8))
    assert stand.store.used_bytes == stand.store.held_bytes == 0
    stand.pin("full")
    stand.run()
    _assert_all_as_generate(stand)


@pytest.mark.parametrize("seed", range(4))
def test_parking_at_random_steps_changes_no_token(seed: int) -> None:
    rng = random.Random(seed)
    stand = make_stand(server={"max_tokens_per_step": 64})
    _post_ragged(stand, 5)
    while stand.unfinished:
        stand.step()
        if rng.random() < 0.25:
            stand.engine.worker._rescue.park_last(0)
            check(stand)
        assert stand.num_steps < 300
    _assert_all_as_generate(stand)


def test_the_same_prompt_is_answered_alike_alone_and_in_company() -> None:
    stand = make_stand()
    ids = [stand.post(prompt(40), 10) for _ in range(3)]
    stand.run()
    assert len({tuple(stand.output(id_)) for id_ in ids}) == 1
    assert is_as_wanted(stand, ids[0])


@pytest.mark.parametrize("mode", ["int8", "int4", "window:64", "window:64+int8", "window:64+int4"])
def test_a_lossy_mode_is_admitted_to(mode: str) -> None:
    stand = make_stand()
    long, short = stand.post(prompt(200), 12), stand.post(prompt(9), 3)
    stand.step(5)
    stand.pin(mode)
    stand.run()
    assert not stand.finished(long).usage.exact
    assert stand.finished(short).usage.exact, "too short to lose anything"
    assert is_as_wanted(stand, short)
    check_empty(stand)
