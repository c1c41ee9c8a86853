"""Puts the engine together: model, pages, sensors, controller and the worker's thread."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from adaptive_kv.cache.slab import Budget
from adaptive_kv.cache.store import PageStore
from adaptive_kv.config import Settings
from adaptive_kv.controller import Controller
from adaptive_kv.engine.admission import Admission
from adaptive_kv.engine.calibrating import calibrated_at_load
from adaptive_kv.engine.card import ModelCard
from adaptive_kv.engine.desk import Desk, Vocabulary
from adaptive_kv.engine.families import permits
from adaptive_kv.engine.forward import Forward
from adaptive_kv.engine.gauge import Gauge
from adaptive_kv.engine.graphs import Capture, DecodeGraphs, capture_decodes
from adaptive_kv.engine.healer import Healer
from adaptive_kv.engine.herald import starting_status
from adaptive_kv.engine.loading import LoadedModel, load_model
from adaptive_kv.engine.losses import Calibration
from adaptive_kv.engine.mailbox import Mailbox
from adaptive_kv.engine.meter import Meter
from adaptive_kv.engine.model import Model
from adaptive_kv.engine.recording import start_recording
from adaptive_kv.engine.rescue import Rescue
from adaptive_kv.engine.scheduler import Scheduler
from adaptive_kv.engine.speed import Speed, measure_speed
from adaptive_kv.engine.start import make_keep, make_start_budget
from adaptive_kv.engine.switcher import Switcher
from adaptive_kv.engine.tally import Tally
from adaptive_kv.engine.text import PromptEncoder
from adaptive_kv.engine.worker import Worker
from adaptive_kv.errors import ModelError
from adaptive_kv.events import Event, EventLog
from adaptive_kv.loader import load_policy, start_policy
from adaptive_kv.policy import CacheMode
from adaptive_kv.progress import Tell, untold
from adaptive_kv.sensors.choose import make_sources
from adaptive_kv.sensors.poller import SensorPoller
from adaptive_kv.trace import Recorder

_STOP_S = 10.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A running engine. Reach it through `mailbox`; `prompts` and `card` are for the front."""

    loaded: LoadedModel
    calibration: Calibration | None
    """What the formats lose; None where nothing was measured."""
    card: ModelCard
    prompts: PromptEncoder
    mailbox: Mailbox
    store: PageStore
    budget: Budget
    tally: Tally
    controller: Controller
    graphs: DecodeGraphs | None
    """Steps that are replayed; None where nobody was to capture any."""
    worker: Worker
    thread: threading.Thread
    sensor: SensorPoller
    recorder: Recorder | None

    @property
    def ladder(self) -> tuple[CacheMode, ...]:
        """As it is at this moment."""
        return self.controller.ladder

    def stop(self) -> None:
        """End the worker after its present step, the sensors, and a policy's process."""
        self.worker.stop()
        if self.thread.is_alive():
            self.thread.join(_STOP_S)
        self.sensor.close()
        self.controller.close()
        if self.recorder is not None:
            self.recorder.close()


def start_engine(
    settings: Settings, events: EventLog, tell: Tell = untold, *, warms_up: bool = True
) -> Engine:
    """Load everything, calibrate the model if that was not done before, and start working.

    Whoever asks for one answer can go without `warms_up`, which takes seconds: no step is captured
    then, and costs only tell the latency of modes that were used. Raises `ModelError`,
    `ConfigError`, `PolicyError` or `SensorError` where that cannot be.
    """
    loaded = load_model(settings.model, tell)
    calibration = calibrated_at_load(settings, loaded, tell)
    may_capture = warms_up and settings.model.graphs
    graphs = _captured(settings, loaded, tell) if may_capture else None
    speed = _measured_speed(settings, loaded, graphs, tell) if warms_up else None
    engine = build_engine(
        settings, loaded, events, calibration=calibration, speed=speed, graphs=graphs
    )
    engine.sensor.start()
    engine.thread.start()
    return engine


def build_engine(
    settings: Settings,
    loaded: LoadedModel,
    events: EventLog,
    clock: Callable[[], float] = time.monotonic,
    *,
    calibration: Calibration | None = None,
    speed: Speed | None = None,
    graphs: DecodeGraphs | None = None,
) -> Engine:
    """Everything put together, nothing started: a test may step the worker itself.

    Formats that lose more than `cache.max_kl` by `calibration` are struck from the ladder. Without
    `speed` costs only tell the latency of modes that were used, without `graphs` no step is
    replayed.
    """

    def emit(event: Event) -> None:
        events.append(event)

    model = loaded.model
    budget = Budget(settings.memory.budget, model.weights_bytes + _bytes_of(graphs))
    _check_budget(loaded, settings)
    store = _store(settings, model, budget)
    sensor = _sensor(settings, model, budget, events)
    controller = _controller(settings, loaded, calibration, emit)
    recorder = start_recording(
        settings,
        loaded,
        store,
        policy=controller.name,
        ladder=controller.ladder,
        supports=_supports(loaded),
    )
    scheduler = Scheduler(settings.server.max_running, settings.server.max_tokens_per_step)
    meter, tally = Meter(), Tally()
    gauge = Gauge(
        model,
        store,
        scheduler,
        meter,
        sensor=sensor,
        floor_bytes=settings.memory.floor,
        speed=speed,
    )
    switcher = Switcher(
        store,
        controller.mode,
        settings.cache.switch_bytes_per_step,
        emit,
        clock,
        None if speed is None else speed.convert_bytes_per_s,
    )
    mailbox = Mailbox(starting_status(gauge.memory(clock()), controller, clock()))
    desk = Desk(
        mailbox,
        scheduler,
        switcher,
        controller,
        store,
        Vocabulary(tokenizer=loaded.tokenizer, size=model.widths.vocab, eos_ids=loaded.eos_ids),
        max_context=model.max_context,
        set_floor=gauge.set_floor,
        emit=emit,
        clock=clock,
    )
    worker = Worker(
        Forward(model, store, graphs),
        store,
        controller=controller,
        gauge=gauge,
        scheduler=scheduler,
        switcher=switcher,
        meter=meter,
        desk=desk,
        admission=Admission(
            scheduler,
            controller,
            store,
            gauge,
            emit,
            max_wait_s=settings.server.max_wait_s,
            clock=clock,
        ),
        rescue=Rescue(store, controller, scheduler, switcher, gauge, emit, clock),
        healer=Healer(
            scheduler,
            store,
            gauge,
            emit,
            is_on=settings.cache.heal,
            max_share=2 * settings.cache.switch_share,
            least_rest_s=lambda: controller.min_dwell_s,
            clock=clock,
        ),
        mailbox=mailbox,
        tally=tally,
        max_age_s=settings.memory.max_age_s,
        switch_share=settings.cache.switch_share,
        note=None if recorder is None else recorder.note,
        clock=clock,
    )
    return Engine(
        loaded=loaded,
        calibration=calibration,
        card=_card(loaded),
        prompts=PromptEncoder(loaded.tokenizer),
        mailbox=mailbox,
        store=store,
        budget=budget,
        tally=tally,
        controller=controller,
        graphs=graphs,
        worker=worker,
        thread=threading.Thread(target=worker.run, name="worker", daemon=True),
        sensor=sensor,
        recorder=recorder,
    )


def _store(settings: Settings, model: Model, budget: Budget) -> PageStore:
    return PageStore(
        model.groups,
        keep=make_keep(settings.cache),
        slab_bytes=settings.cache.slab,
        budget=budget,
        device=model.device,
        shares_prefixes=settings.cache.prefix,
    )


def _captured(
    settings: Settings, loaded: LoadedModel, tell: Tell, capture: Capture | None = None
) -> DecodeGraphs:
    """Steps for as many sequences as may run; the log says what came of it, where it was tried."""
    started_s = time.monotonic()
    graphs = capture_decodes(
        loaded.model,
        keep=make_keep(settings.cache),
        slab_bytes=settings.cache.slab,
        budget=make_start_budget(settings, loaded.model),
        max_rows=settings.server.max_running,
        capture=capture,
        tell=tell,
    )
    if graphs.why_none is not None:
        _log.warning("decode_not_captured", reason=graphs.why_none)
    elif graphs:
        _log.info(
            "decode_captured",
            rows=graphs.sizes,
            num_bytes=graphs.num_bytes,
            duration_s=round(time.monotonic() - started_s, 3),
        )
    return graphs


def _bytes_of(graphs: DecodeGraphs | None) -> int:
    return 0 if graphs is None else graphs.num_bytes


def _measured_speed(
    settings: Settings, loaded: LoadedModel, graphs: DecodeGraphs | None, tell: Tell
) -> Speed | None:
    """Also has the kernels compiled before the first request comes."""
    started_s = time.monotonic()
    speed = measure_speed(
        loaded.model,
        keep=make_keep(settings.cache),
        slab_bytes=settings.cache.slab,
        budget=make_start_budget(settings, loaded.model, _bytes_of(graphs)),
        graphs=graphs,
        tell=tell,
    )
    _log.info(
        "speed_measured",
        token_s=speed and speed.step_s,
        duration_s=round(time.monotonic() - started_s, 3),
    )
    return speed


def _sensor(settings: Settings, model: Model, budget: Budget, events: EventLog) -> SensorPoller:
    sources = make_sources(settings.memory, str(model.device), lambda: budget.kept_bytes)
    return SensorPoller(
        sources.sensors,
        poll_hz=settings.memory.poll_hz,
        events=events,
        telemetry=sources.telemetry,
    )


def _controller(
    settings: Settings,
    loaded: LoadedModel,
    calibration: Calibration | None,
    emit: Callable[[Event], None],
) -> Controller:
    struck = calibration.struck(settings.cache.max_kl) if calibration else frozenset()
    policy, name = start_policy(
        settings.policy.name, settings.policy.options, deadline_s=settings.policy.deadline_s
    )
    fallback, _ = load_policy("ladder", {})
    return Controller(
        policy,
        name=name,
        fallback=fallback,
        ladder=settings.cache.ladder,
        min_dwell_s=settings.policy.min_dwell_s,
        max_age_s=settings.memory.max_age_s,
        deadline_s=settings.policy.deadline_s,
        emit=emit,
        is_supported=_supports(loaded),
        is_struck=lambda mode: mode.page_format in struck,
    )


def _supports(loaded: LoadedModel) -> Callable[[CacheMode], bool]:
    return lambda mode: permits(loaded.model.model_type, mode)


def _card(loaded: LoadedModel) -> ModelCard:
    return ModelCard(
        name=loaded.name,
        max_context=loaded.model.max_context,
        vocab_size=loaded.model.widths.vocab,
        created_s=int(time.time()),
        supports=_supports(loaded),
    )


def _check_budget(loaded: LoadedModel, settings: Settings) -> None:
    limit_bytes, weights_bytes = settings.memory.budget, loaded.model.weights_bytes
    if limit_bytes is not None and weights_bytes >= limit_bytes:
        why = f"its weights take {weights_bytes} bytes, memory.budget is {limit_bytes}"
        raise ModelError(loaded.name, why)
