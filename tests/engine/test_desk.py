"""The desk: what ends a request, what is refused, what a request is told it cost."""

import functools
from collections.abc import Sequence

import pytest
import torch
from engines import (
    EXACT,
    check,
    check_empty,
    is_as_wanted,
    make_stand,
    tokenizer,
    wanted,
)
from models import prepared, prompt
from torch import Tensor

from adaptive_kv.attention.batch import RaggedBatch
from adaptive_kv.engine.mailbox import BeginDrain, PinMode, TokenLogprob
from adaptive_kv.engine.model import Model
from adaptive_kv.engine.status import Health
from adaptive_kv.events import Drain, RequestRejected, SequenceParked, SequenceResumed
from adaptive_kv.policy import CacheMode

_PROMPT = prompt(30, seed=5)


@functools.cache
def _answer() -> list[int]:
    """What the tiny llama says to `_PROMPT`."""
    return wanted(tuple(_PROMPT), 12)


def _text(token_ids: Sequence[int]) -> str:
    text = tokenizer().decode(list(token_ids))
    assert isinstance(text, str)
    return text


def _first_place_of(place: int) -> int:
    """Where the token at `place` of the answer comes first."""
    return _answer().index(_answer()[place])


def test_max_tokens_ends_with_length() -> None:
    stand = make_stand()
    id_ = stand.post(_PROMPT, 7)
    stand.run()
    assert stand.output(id_) == _answer()[:7]
    assert stand.text(id_) == _text(_answer()[:7])
    assert stand.finished(id_).reason == "length"
    assert stand.finished(id_).usage.num_output_tokens == 7


def test_a_stop_string_across_tokens_ends_the_text_before_it() -> None:
    stand = make_stand()
    stop = _text(_answer()[4:7])
    assert len(stop) == 3, "one character each"
    id_ = stand.post(_PROMPT, 12, stop=(stop,))
    stand.run()
    assert stand.finished(id_).reason == "stop"
    assert stand.text(id_) == _text(_answer()).split(stop, maxsplit=1)[0]
    assert stop not in stand.text(id_)


def test_a_stop_string_that_never_completes_holds_no_text_back() -> None:
    stand = make_stand()
    id_ = stand.post(_PROMPT, 6, stop=(_text(_answer()[5:6]) + "never",))
    stand.run()
    assert stand.finished(id_).reason == "length"
    assert stand.text(id_) == _text(_answer()[:6])


def test_a_stop_token_ends_without_its_text() -> None:
    stand = make_stand()
    place = _first_place_of(5)
    id_ = stand.post(_PROMPT, 12, stop_token_ids=(_answer()[5],))
    stand.run()
    assert stand.finished(id_).reason == "stop"
    assert stand.output(id_) == _answer()[: place + 1]
    assert stand.text(id_) == _text(_answer()[:place])


def test_the_end_of_sequence_ends_unless_it_is_ignored() -> None:
    place = _first_place_of(5)
    stand = make_stand(eos_ids=[_answer()[5]])
    ends = stand.post(_PROMPT, 12, ignore_eos=False)
    goes_on = stand.post(_PROMPT, 12, ignore_eos=True)
    stand.run()
    assert stand.finished(ends).reason == "stop"
    assert stand.output(ends) == _answer()[: place + 1]
    assert stand.finished(goes_on).reason == "length"
    assert stand.output(goes_on) == _answer()


def test_min_tokens_puts_the_end_of_sequence_off() -> None:
    stand = make_stand(eos_ids=[_answer()[2]])
    id_ = stand.post(_PROMPT, 12, min_tokens=6, ignore_eos=False)
    stand.run()
    assert len(stand.output(id_)) >= 6
    assert _answer()[2] not in stand.output(id_)[:6]


def test_the_end_of_the_context_ends_with_length() -> None:
    stand = make_stand()
    id_ = stand.post(prompt(1020), 50)
    stand.run()
    assert stand.finished(id_).reason == "length"
    assert len(stand.output(id_)) == 4


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    stand = make_stand()
    id_ = stand.post(prompt(1024))
    stand.step()
    refusal = stand.failed(id_).refusal
    assert (refusal.status, refusal.code) == (400, "context_length_exceeded")
    check_empty(stand)


def test_logprobs_come_with_the_tokens_that_they_are_of() -> None:
    stand = make_stand()
    with_some, without = stand.post(_PROMPT, 4, logprobs=2), stand.post(_PROMPT, 4)
    stand.run()
    found: list[TokenLogprob] = []
    for delta in stand.deltas[with_some]:
        found += delta.logprobs
    assert [one.token_id for one in found] == stand.output(with_some)
    assert all(len(one.top) == 2 and one.top[0] == (one.token_id, one.logprob) for one in found)
    assert all(one.logprob < 0 for one in found)
    assert not any(delta.logprobs for delta in stand.deltas[without])


def test_a_seed_draws_the_same_tokens_alone_and_in_company() -> None:
    alone, company = make_stand(), make_stand()
    id_ = alone.post(_PROMPT, 10, temperature=1.5, seed=11)
    alone.run()
    for n in (9, 50):
        company.post(prompt(n), 10, temperature=0.9)
    other = company.post(_PROMPT, 10, temperature=1.5, seed=11)
    company.run()
    assert company.output(other) == alone.output(id_) != _answer()[:10]


# Cancel


def test_a_cancelled_request_is_gone_after_one_step_and_disturbs_nobody() -> None:
    stand = make_stand()
    gone, stays = stand.post(prompt(60), 30), stand.post(_PROMPT, 8)
    stand.step(4)
    used_bytes = stand.store.used_bytes
    stand.cancel(gone)
    stand.step()
    assert stand.store.used_bytes < used_bytes
    assert stand.scheduler.find(gone) is None
    num_deltas = len(stand.deltas[gone])
    stand.step(10)
    assert len(stand.deltas[gone]) == num_deltas
    assert gone not in stand.ends, "nobody listens any more"
    assert is_as_wanted(stand, stays)
    check_empty(stand)


def test_a_waiting_request_can_be_cancelled() -> None:
    stand = make_stand(server={"max_running": 1})
    stand.post(_PROMPT, 8)
    waiting = stand.post(prompt(60), 8)
    stand.step(2)
    assert stand.status.load.waiting == 1
    stand.cancel(waiting)
    stand.step()
    assert stand.status.load.waiting == 0
    assert waiting not in stand.deltas


def test_a_parked_request_can_be_cancelled() -> None:
    stand = make_stand()
    id_ = stand.post(_PROMPT, 8)
    stand.step(2)
    stand.engine.worker._rescue.park_last(0)
    stand.cancel(id_)
    stand.step()
    check_empty(stand)


def test_a_request_cancelled_before_it_was_seen_never_runs() -> None:
    stand = make_stand()
    id_ = stand.post(_PROMPT, 8)
    stand.cancel(id_)
    stand.step(2)
    assert id_ not in stand.deltas
    check_empty(stand)


def test_an_unknown_id_is_ignored() -> None:
    stand = make_stand()
    stand.cancel("nobody")
    stand.step()
    check_empty(stand)


# Drain and expiry


def test_draining_refuses_new_requests_and_finishes_old_ones() -> None:
    stand = make_stand(server={"max_running": 1})
    running, waiting = stand.post(_PROMPT, 8), stand.post(_PROMPT, 8)
    stand.step(2)
    stand.engine.mailbox.post(BeginDrain())
    late = stand.post(_PROMPT, 8)
    stand.step()
    assert stand.of_type(Drain) == [Drain(running=2)]
    assert (stand.status.health, stand.status.is_ready) == (Health.DRAINING, False)
    refusal = stand.failed(late).refusal
    assert (refusal.status, refusal.code) == (503, "draining")
    assert refusal.retry_after_s
    stand.run()
    assert stand.output(running) == stand.output(waiting) == _answer()[:8]


def test_who_waits_too_long_gets_503_with_a_time_to_come_back() -> None:
    stand = make_stand(server={"max_running": 1, "max_wait_s": 30})
    running, waiting = stand.post(_PROMPT, 12), stand.post(_PROMPT, 8)
    stand.step(2)
    stand.clock.ahead_s += 31
    stand.step()
    refusal = stand.failed(waiting).refusal
    assert (refusal.status, refusal.code) == (503, "overloaded")
    assert refusal.retry_after_s == 30
    assert stand.of_type(RequestRejected) == [RequestRejected(request=waiting, code="overloaded")]
    stand.run()
    assert stand.finished(running), "who runs may take its time"


def test_who_was_parked_waits_from_then_on() -> None:
    stand = make_stand(server={"max_wait_s": 30})
    id_ = stand.post(_PROMPT, 12)
    stand.step(3)
    stand.clock.ahead_s += 31
    stand.engine.worker._rescue.park_last(0)
    stand.step(2)
    assert id_ not in stand.ends
    assert stand.of_type(SequenceResumed)[0].parked_s < 30
    stand.run()
    assert is_as_wanted(stand, id_)


def test_who_is_parked_again_and_again_without_a_new_token_waits_on() -> None:
    stand = make_stand(server={"max_wait_s": 30, "max_tokens_per_step": 16})
    id_ = stand.post(prompt(100), 12)
    for _ in range(5):
        stand.step(2)
        if id_ in stand.ends:
            break
        stand.engine.worker._rescue.park_last(0)
        stand.clock.ahead_s += 10
    assert stand.failed(id_).refusal.code == "out_of_memory"


# Fault of one


class _Broken(Model):
    """A model whose logits are no numbers after token 96."""

    __slots__ = ()

    def forward(
        self, ids: Sequence[int], positions: Sequence[int], last: Sequence[int], batch: RaggedBatch
    ) -> Tensor:
        logits = super().forward(ids, positions, last, batch)
        is_broken = torch.tensor([ids[place] == 96 for place in last])
        return logits.masked_fill(is_broken[:, None], torch.nan)


def test_logits_that_are_no_numbers_fail_only_their_own_request() -> None:
    base = prepared()
    model = _Broken(**{name: getattr(base, name) for name in Model.__slots__})
    stand = make_stand(model)
    broken = stand.post([5, 6, 96], 8)
    others = [stand.post(_PROMPT, 8), stand.post(prompt(60), 1)]
    stand.run()
    refusal = stand.failed(broken).refusal
    assert (refusal.status, refusal.code) == (500, "logits_not_finite")
    assert 96 not in {*stand.output(others[0]), *_PROMPT}
    assert all(is_as_wanted(stand, id_) for id_ in others)
    check_empty(stand)


# Allow-lists and priorities


def test_a_request_that_permits_no_mode_of_the_model_is_refused() -> None:
    stand = make_stand()
    id_ = stand.post(_PROMPT, 4, allow=[])
    stand.step()
    refusal = stand.failed(id_).refusal
    assert (refusal.status, refusal.code) == (400, "invalid_mode")
    assert refusal.param == "adaptive_kv.allow"


@pytest.mark.parametrize("mode", ["int4", "window:64", "disabled"])
def test_a_pinned_mode_that_is_not_allowed_is_not_used(mode: str) -> None:
    stand = make_stand()
    full, free = stand.post(prompt(150), 12, allow=["full"]), stand.post(prompt(150), 12)
    stand.step(4)
    stand.pin(mode)
    later = stand.post(prompt(150), 5, allow=["full"])
    for _ in range(10):
        stand.step()
        check(stand)
    assert stand.sequence(free).mode == mode if free not in stand.ends else True
    stand.run()
    for id_ in (full, later):
        assert list(stand.finished(id_).usage.tokens_by_mode) == ["full"]
        assert stand.finished(id_).usage.exact
        assert is_as_wanted(stand, id_)


def test_memory_pressure_parks_who_may_not_go_down_and_switches_who_may() -> None:
    stand = make_stand(cache={"ladder": ("full", "int4")}, policy={"min_dwell_s": 1000})
    may = stand.post(prompt(200, seed=1), 12)
    may_not = stand.post(prompt(200, seed=1), 12, allow=["full"])
    stand.step(5)
    failing = stand.faults.num_calls + 1
    stand.faults.failing = lambda n: failing <= n < failing + 2
    stand.step(2)
    assert stand.sequence(may).mode == "int4"
    assert [event.sequence for event in stand.of_type(SequenceParked)] == [may_not]
    stand.run()
    assert is_as_wanted(stand, may_not)
    assert stand.finished(may_not).usage.exact


def test_the_newest_and_least_important_is_parked_first_and_resumes_last() -> None:
    stand = make_stand()
    names = {
        "old": stand.post(prompt(20), 20),
        "new": stand.post(prompt(20), 20),
        "important": stand.post(prompt(20), 20, priority=1),
        "unimportant": stand.post(prompt(20), 20, priority=-1),
    }
    stand.step(2)
    for _ in names:
        stand.engine.worker._rescue.park_last(0)
    stand.run()
    order = [event.sequence for event in stand.of_type(SequenceParked)]
    back = [event.sequence for event in stand.of_type(SequenceResumed)]
    assert order == [names[name] for name in ("unimportant", "new", "old", "important")]
    assert back == order[::-1]


# Usage


def test_usage_counts_tokens_by_mode_and_switches() -> None:
    stand = make_stand()
    id_ = stand.post(prompt(120), 10)
    while len(stand.output(id_)) < 3:
        stand.step()
    stand.pin("int4")
    while len(stand.output(id_)) < 7:
        stand.step()
    stand.pin("full")
    stand.run()
    usage = stand.finished(id_).usage
    assert usage.num_prompt_tokens == 120
    assert usage.tokens_by_mode == {"full": 6, "int4": 4}
    assert usage.switches == 2
    assert not usage.exact, "what int4 lost stays lost"


def test_disabled_and_full_are_exact_and_stay_so_together() -> None:
    stand = make_stand(cache=EXACT)
    id_ = stand.post(prompt(120), 10)
    stand.step(4)
    stand.pin("disabled")
    stand.step(3)
    stand.pin("full")
    stand.run()
    usage = stand.finished(id_).usage
    assert set(usage.tokens_by_mode) == {"full", "disabled"}
    assert usage.exact
    assert is_as_wanted(stand, id_)


def test_disabled_after_a_lossy_mode_is_not_called_exact() -> None:
    """What follows is computed exactly, but from tokens that were not."""
    stand = make_stand()
    id_ = stand.post(prompt(200), 12)
    stand.pin("int4")
    while len(stand.output(id_)) < 4:
        stand.step()
    stand.pin("disabled")
    stand.run()
    assert not stand.finished(id_).usage.exact


def test_a_mode_that_came_and_went_before_it_touched_anything_leaves_a_request_exact() -> None:
    stand = make_stand(server={"max_running": 1})
    stand.post(prompt(30), 6)
    waiting = stand.post(prompt(120), 6)
    stand.step(2)
    stand.engine.mailbox.post(PinMode(CacheMode("int4")))
    stand.step(2)
    stand.pin("full")
    stand.run()
    assert stand.finished(waiting).usage.exact
    assert is_as_wanted(stand, waiting)
