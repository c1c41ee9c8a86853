"""The engine as a service: its status after every phase, its thread, and its end."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from engines import EOS, MIB, Clock, Memory, Stand, make_settings, make_stand, tokenizer, wanted
from models import prepared, prompt

from adaptive_kv.engine import service
from adaptive_kv.engine.loading import LoadedModel
from adaptive_kv.engine.mailbox import Delta, Failed, Finished, Mailbox, Reply, Request
from adaptive_kv.engine.mailbox import SamplingParams as Params
from adaptive_kv.engine.service import Engine, build_engine
from adaptive_kv.engine.status import Health
from adaptive_kv.errors import ConfigError, ModelError, PolicyError, SensorError
from adaptive_kv.events import EventLog, SensorFault, SensorRecovered

_ENOUGH_S = 60.0


def _loaded() -> LoadedModel:
    return LoadedModel(
        name="tiny", model=prepared(), tokenizer=tokenizer(), eos_ids=frozenset({EOS})
    )


class _Listener:
    """Takes replies in the worker's thread, and lets another one wait for the last."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.replies: list[Reply] = []
        self.has_ended = threading.Event()
        mailbox.on_replies(self._take)

    def _take(self, replies: Any) -> None:
        self.replies += replies
        if not isinstance(self.replies[-1], Delta):
            self.has_ended.set()

    @property
    def end(self) -> Reply:
        assert self.has_ended.wait(_ENOUGH_S)
        return self.replies[-1]


def _request(num_prompt: int = 30, num_tokens: int = 5) -> Request:
    params = Params(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    return Request(id="one", prompt_ids=tuple(prompt(num_prompt)), sampling=params)


def _start(engine: Engine) -> _Listener:
    listener = _Listener(engine.mailbox)
    engine.sensor.start()
    engine.thread.start()
    return listener


# Status


def _health(stand: Stand) -> Health:
    return stand.status.health


def test_before_its_first_step_it_is_not_ready() -> None:
    stand = make_stand()
    assert (stand.status.is_ready, stand.status.reason_code) == (False, "starting")
    stand.step()
    assert (stand.status.is_ready, stand.status.health) == (True, Health.OK)


def test_status_counts_sequences_as_they_are_after_each_step() -> None:
    stand = make_stand(server={"max_running": 2})
    for n in (20, 30, 40):
        stand.post(prompt(n), 6)
    stand.step()
    while stand.unfinished:
        status, scheduler = stand.status, stand.scheduler
        assert status.load.running == len(scheduler.running)
        assert status.load.waiting == len(scheduler.waiting)
        assert sum(status.num_sequences_by_mode.values()) == len(scheduler.running)
        states = Counter(sequence.state for sequence in status.sequences)
        assert states["running"] == len(scheduler.running)
        assert states["waiting"] == len(scheduler.waiting)
        stand.step()
    assert (stand.status.load.running, stand.status.load.waiting) == (0, 0)
    assert stand.status.sequences == ()


def test_a_parked_sequence_makes_the_service_degraded_until_it_resumes() -> None:
    stand = make_stand(policy={"name": "ladder"})
    stand.post(prompt(20), 9)
    stand.step(2)
    first = stand.faults.num_calls + 1
    stand.faults.failing = lambda n: n >= first
    stand.step()
    assert _health(stand) == Health.DEGRADED
    assert [s.state for s in stand.status.sequences] == ["parked"]
    assert stand.status.sequences[0].cache_bytes == 0
    stand.faults.failing = lambda _: False
    stand.step()
    assert _health(stand) == Health.OK


def test_a_pin_is_told_and_so_is_its_end() -> None:
    stand = make_stand()
    stand.pin("int8")
    stand.step()
    assert (stand.status.pinned, stand.status.mode) == (True, "int8")
    assert stand.status.reason_code == "pinned"
    stand.unpin()
    stand.step()
    assert (stand.status.pinned, stand.status.mode) == (False, "full")


def test_an_old_sample_makes_the_service_degraded_but_not_silent(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "memory.json", 8 * MIB)
    stand = make_stand(memory={"source": f"file:{memory.path}", "floor": 0, "max_age_s": 50})
    id_ = stand.post(prompt(20), 5)
    stand.step(2)
    memory.path.unlink()
    stand.clock.ahead_s = 100
    for _ in range(3):
        stand.engine.sensor.poll()
        stand.engine.worker.step()
    assert _health(stand) == Health.DEGRADED
    assert len(stand.of_type(SensorFault)) == 1
    assert len(stand.output(id_)) == 5, "it needed no more memory"
    stand.clock.ahead_s = 0
    memory.write(stand.store.held_bytes)
    stand.step()
    assert _health(stand) == Health.OK
    assert len(stand.of_type(SensorRecovered)) == 1


# The thread


def test_the_thread_serves_and_stops() -> None:
    engine = build_engine(make_settings(), _loaded(), EventLog())
    listener = _start(engine)
    engine.mailbox.post(_request())
    assert isinstance(listener.end, Finished)
    ids = [i for reply in listener.replies if isinstance(reply, Delta) for i in reply.token_ids]
    assert ids == wanted(_request().prompt_ids, 5)
    engine.stop()
    assert not engine.thread.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_that_no_step_survives_is_published_and_fails_everyone() -> None:
    stand = make_stand()
    engine = stand.engine

    def fail() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    stand.faults.ask = fail  # type: ignore[method-assign]
    listener = _start(engine)
    engine.mailbox.post(_request())
    end = listener.end
    assert isinstance(end, Failed)
    assert (end.refusal.status, end.refusal.code) == (500, "engine_failed")
    engine.thread.join(_ENOUGH_S)
    assert not engine.thread.is_alive()
    status = engine.mailbox.status
    assert (status.health, status.is_ready) == (Health.FAILED, False)
    engine.stop()


# Putting together


def test_a_ladder_of_which_the_model_supports_nothing_is_refused() -> None:
    loaded = LoadedModel(
        name="tiny",
        model=prepared("deepseek_v3"),
        tokenizer=tokenizer(),
        eos_ids=frozenset({EOS}),
    )
    settings = make_settings(cache={"ladder": ("int4",)})
    with pytest.raises(ConfigError, match=r"cache\.ladder"):
        build_engine(settings, loaded, EventLog())


def test_a_policy_that_is_not_there_is_refused() -> None:
    settings = make_settings(policy={"name": "no-such-policy"})
    with pytest.raises(PolicyError, match="no-such-policy"):
        build_engine(settings, _loaded(), EventLog())


def test_a_memory_source_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    settings = make_settings(memory={"source": f"file:{tmp_path / 'nothing'}"})
    with pytest.raises(SensorError, match="nothing"):
        build_engine(settings, _loaded(), EventLog())


def test_a_model_that_is_not_there_starts_nothing(tmp_path: Path) -> None:
    settings = make_settings(model={"path": str(tmp_path / "missing"), "device": "cpu"})
    num_threads = threading.active_count()
    with pytest.raises(ModelError, match="missing"):
        service.start_engine(settings, EventLog())
    assert threading.active_count() == num_threads


def test_the_card_says_what_the_model_can_do() -> None:
    engine = build_engine(make_settings(), _loaded(), EventLog(), Clock())
    assert engine.card.name == "tiny"
    assert engine.card.max_context == 1024
    assert engine.card.vocab_size == 97
