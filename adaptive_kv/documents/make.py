"""From what the engine knows to the documents that outsiders see."""

import itertools
import math
import platform
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from adaptive_kv.documents.models import (
    EVENT_SCHEMA,
    INFO_SCHEMA,
    STATE_SCHEMA,
    CalibrationState,
    EventDocument,
    FormatLossState,
    InfoDocument,
    StateDocument,
    own_keys,
)
from adaptive_kv.engine.losses import Calibration
from adaptive_kv.engine.status import Status
from adaptive_kv.events import Recorded, SequenceSwitched

_PACKAGES = ("adaptive-kv", "torch", "transformers")


class DocumentMaker:
    """Makes the state and event documents of one boot; any thread, any number of readers."""

    def __init__(
        self,
        status: Callable[[], Status],
        *,
        node: str,
        boot_id: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.node = node
        self.boot_id = boot_id
        self.dropped_events = 0
        """Written by whoever publishes events, as the next one."""
        self.suppressed_events = 0
        self.status = status
        """The truth of this moment, as the engine has it."""
        self._clock = clock
        self._seqs = itertools.count(1)

    def state(self) -> StateDocument:
        """The truth of this moment, with a `seq` above all before."""
        return state_document(
            self.status(),
            node=self.node,
            boot_id=self.boot_id,
            seq=next(self._seqs),
            time=self._clock(),
            dropped_events=self.dropped_events,
            suppressed_events=self.suppressed_events,
        )

    def event(self, recorded: Recorded, *, num_suppressed: int = 0) -> EventDocument:
        """The document of an event; the same one however often it is asked for."""
        return event_document(
            recorded, node=self.node, boot_id=self.boot_id, num_suppressed=num_suppressed
        )


def new_boot_id() -> str:
    """Eight hexadecimal digits, others for every start of the process."""
    return secrets.token_hex(4)


def state_document(
    status: Status,
    *,
    node: str,
    boot_id: str,
    seq: int,
    time: float,
    dropped_events: int,
    suppressed_events: int = 0,
) -> StateDocument:
    """`status` as outsiders see it; `time` is wall clock, in seconds since the epoch."""
    latency = {"token_p50_s": status.latency.p50_s, "token_p95_s": status.latency.p95_s}
    return StateDocument.model_validate(
        {
            "schema": STATE_SCHEMA,
            "node": node,
            "boot_id": boot_id,
            "seq": seq,
            "time": rfc3339(time),
            "health": status.health,
            "mode": status.mode,
            "mode_age_s": status.mode_age_s,
            "pinned": status.pinned,
            "reason": {"code": status.reason_code, "text": status.reason_text},
            "policy": status.policy,
            "memory": status.memory,
            "latency": latency,
            "load": status.load,
            "sequences": status.num_sequences_by_mode,
            "dropped_events": dropped_events,
            "suppressed_events": suppressed_events,
            "costs": status.costs,
            "sequence_list": status.sequences,
        }
    )


def event_document(
    recorded: Recorded, *, node: str, boot_id: str, num_suppressed: int = 0
) -> EventDocument:
    """An event as outsiders see it; before it, `num_suppressed` were kept from them."""
    event = recorded.event
    own = {key: getattr(event, name) for key, name in own_keys(type(event)).items()}
    if isinstance(event, SequenceSwitched):
        own["sequences"] = 1  # all keys of a switch are there, whatever switched
    return EventDocument.model_validate(
        {
            "schema": EVENT_SCHEMA,
            "node": node,
            "boot_id": boot_id,
            "seq": recorded.seq,
            "time": rfc3339(recorded.time_s),
            "type": event.type,
            "suppressed": num_suppressed or None,
            **own,
        }
    )


def info_document(
    *,
    node: str,
    boot_id: str,
    time: float,
    device: str,
    model: str,
    memory_source: str,
    ladder: Iterable[str],
    calibration: CalibrationState | None = None,
    commands: Iterable[str] = (),
    has_graphs: bool = False,
) -> InfoDocument:
    """What seldom changes while the process runs; `time` is seconds since the epoch."""
    return InfoDocument(
        schema=INFO_SCHEMA,
        node=node,
        boot_id=boot_id,
        time=rfc3339(time),
        versions=_versions(),
        device=device,
        model=model,
        memory_source=memory_source,
        ladder=tuple(ladder),
        calibration=calibration,
        schemas=(STATE_SCHEMA, EVENT_SCHEMA, INFO_SCHEMA),
        commands=tuple(commands),
        decode="graphs" if has_graphs else "layers",
    )


def calibration_state(calibration: Calibration, max_kl: float) -> CalibrationState:
    """What the formats lose, and which of them `cache.max_kl` strikes."""
    struck = calibration.struck(max_kl)
    losses = {
        name: FormatLossState(
            kl_divergence=_finite(loss.kl_divergence),
            top1_agreement=loss.top1_agreement,
            perplexity=_finite(loss.perplexity),
            struck=name in struck,
        )
        for name, loss in calibration.formats.items()
    }
    return CalibrationState(
        num_tokens=calibration.num_tokens,
        num_positions=calibration.num_positions,
        perplexity=_finite(calibration.perplexity),
        max_kl=max_kl,
        formats=losses,
    )


def rfc3339(time_s: float) -> str:
    """UTC with milliseconds, as in `2026-11-23T03:51:38.412Z`."""
    moment = datetime.fromtimestamp(time_s, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _finite(number: float) -> float | None:
    """JSON has no other numbers."""
    return number if math.isfinite(number) else None


def _versions() -> dict[str, str]:
    """Asked of the metadata, so that nothing heavy is loaded."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
