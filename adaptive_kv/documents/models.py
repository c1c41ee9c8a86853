"""What the documents look like; JSON Schemas are generated from here."""

from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from adaptive_kv.engine.status import Health
from adaptive_kv.events import (
    Drain,
    Event,
    Healed,
    ModeChanged,
    Oom,
    OomAverted,
    PolicyFault,
    RequestRejected,
    SensorFault,
    SensorRecovered,
    SequenceParked,
    SequenceResumed,
    SequenceSwitched,
)

STATE_SCHEMA: Literal["adaptive-kv.state/1"] = "adaptive-kv.state/1"
EVENT_SCHEMA: Literal["adaptive-kv.event/1"] = "adaptive-kv.event/1"
INFO_SCHEMA: Literal["adaptive-kv.info/1"] = "adaptive-kv.info/1"

EVENTS: tuple[type[Event], ...] = (
    ModeChanged,
    SequenceSwitched,
    OomAverted,
    Oom,
    PolicyFault,
    SensorFault,
    SensorRecovered,
    RequestRejected,
    SequenceParked,
    SequenceResumed,
    Healed,
    Drain,
)
"""Everything that can happen."""

_RENAMED = {"from_mode": "from", "to_mode": "to"}
_ALSO: dict[type[Event], tuple[str, ...]] = {SequenceSwitched: ("sequences",)}

MODE_PATTERN = r"^(full|int8|int4|disabled|window:[1-9][0-9]{0,8}(\+int8|\+int4)?)$"
Mode = Annotated[str, Field(pattern=MODE_PATTERN)]
Node = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
# Told, not enforced: a number that is wrong by our fault must not keep the others from being shown.
Count = Annotated[int, Field(json_schema_extra={"minimum": 0})]
Seconds = Annotated[float, Field(json_schema_extra={"minimum": 0})]
Time = Annotated[
    str,
    Field(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$",
        json_schema_extra={"format": "date-time"},
    ),
]


class Document(BaseModel):
    """What all documents and their parts share."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        from_attributes=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
        validate_by_alias=True,
        validate_by_name=True,
    )
    is_sparse: ClassVar[bool] = False
    """Whether fields that are None are left out."""

    def to_json(self) -> str:
        """One line of JSON."""
        return self.model_dump_json(exclude_none=self.is_sparse)


class Reason(Document):
    """Why the mode is what it is: a word for programs, a sentence for people."""

    code: str
    text: str


class PolicyState(Document):
    """The policy in charge; `status` is `ok`, `faulty` or `fallback`."""

    name: str
    status: str
    faults: Count


class MemoryState(Document):
    """Memory of the device as its `source` tells it, and what of it is ours."""

    source: str
    total_bytes: Count
    free_bytes: int
    floor_bytes: Count
    weights_bytes: Count
    cache_bytes: Count
    sample_age_s: Seconds


class LatencyState(Document):
    """Seconds per token as a sequence sees it; null before the first token."""

    token_p50_s: Seconds | None
    token_p95_s: Seconds | None


class LoadState(Document):
    """How much work there is; parked sequences wait."""

    running: Count
    waiting: Count
    tokens_per_s: Annotated[float, Field(json_schema_extra={"minimum": 0})]


class CostState(Document):
    """What a mode would cost for all sequences of this moment."""

    bytes: Count
    token_s: Seconds | None
    """Null while unknown on this box."""
    exact: bool


class SequenceState(Document):
    """One sequence, without its text."""

    id: str
    state: str
    """`waiting`, `running` or `parked`."""
    mode: Mode
    num_tokens: Count
    cache_bytes: Count
    exact: bool


class StateDocument(Document):
    """The truth of one moment."""

    schema_: Literal["adaptive-kv.state/1"] = Field(alias="schema")
    node: Node
    boot_id: str
    """Another one after every start of the process."""
    seq: Annotated[int, Field(ge=1)]
    """Counts the state documents of this boot."""
    time: Time
    health: Health
    mode: Mode
    mode_age_s: Seconds
    pinned: bool
    """Whether `mode` is held whatever the policy says."""
    reason: Reason
    policy: PolicyState
    memory: MemoryState
    latency: LatencyState
    load: LoadState
    sequences: dict[Mode, Count]
    """How many sequences run in each mode."""
    dropped_events: Count
    """Events of this boot that were never published, because the broker was away too long or denied
    them."""
    suppressed_events: Count = 0
    """Events of this boot that were not published because there were too many of their type."""
    costs: dict[Mode, CostState]
    sequence_list: tuple[SequenceState, ...]
    """The first ones only, where there are many."""


def _without_null(schema: dict[str, Any]) -> None:
    """Say the truth about fields that are left out rather than null."""
    schema.pop("default", None)


LEFT_OUT = Field(None, json_schema_extra=_without_null)
"""For what is left out of a sparse document where there is nothing to say."""


def own_keys(kind: type[Event]) -> dict[str, str]:
    """The attributes of an event by their names in its document."""
    return {_RENAMED.get(field.name, field.name): field.name for field in fields(kind)}


def _tell_needed(schema: dict[str, Any]) -> None:
    """Let the schema tell which fields each type of event has."""
    schema["allOf"] = [
        {
            "if": {"properties": {"type": {"const": kind.type}}},
            "then": {"required": [*own_keys(kind), *_ALSO.get(kind, ())]},
        }
        for kind in EVENTS
    ]


class EventDocument(Document):
    """Something that happened. Which fields there are beyond `type` depends on it."""

    model_config = ConfigDict(json_schema_extra=_tell_needed)
    is_sparse = True

    schema_: Literal["adaptive-kv.event/1"] = Field(alias="schema")
    node: Node
    boot_id: str
    """Another one after every start of the process."""
    seq: Annotated[int, Field(ge=1)]
    """Counts the events of this boot; a gap is one that was dropped or suppressed."""
    time: Time
    type: Annotated[str, Field(json_schema_extra={"enum": [kind.type for kind in EVENTS]})]
    from_: Mode | SkipJsonSchema[None] = Field(None, alias="from", json_schema_extra=_without_null)
    to: Mode | SkipJsonSchema[None] = LEFT_OUT
    reason: str | SkipJsonSchema[None] = LEFT_OUT
    duration_s: Seconds | SkipJsonSchema[None] = LEFT_OUT
    freed_bytes: int | SkipJsonSchema[None] = LEFT_OUT
    """Negative where the cache grew."""
    sequences: Count | SkipJsonSchema[None] = LEFT_OUT
    """How many sequences switched."""
    sequence: str | SkipJsonSchema[None] = LEFT_OUT
    """The one sequence concerned."""
    num_tokens: Count | SkipJsonSchema[None] = LEFT_OUT
    parked_s: Seconds | SkipJsonSchema[None] = LEFT_OUT
    needed_bytes: int | SkipJsonSchema[None] = LEFT_OUT
    policy: str | SkipJsonSchema[None] = LEFT_OUT
    faults: Count | SkipJsonSchema[None] = LEFT_OUT
    """How many faults this policy has had."""
    error: str | SkipJsonSchema[None] = LEFT_OUT
    source: str | SkipJsonSchema[None] = LEFT_OUT
    """The memory source concerned."""
    request: str | SkipJsonSchema[None] = LEFT_OUT
    code: str | SkipJsonSchema[None] = LEFT_OUT
    """Why a request was rejected."""
    running: Count | SkipJsonSchema[None] = LEFT_OUT
    """How many sequences were running."""
    suppressed: Count | SkipJsonSchema[None] = LEFT_OUT
    """How many events before this one were not published because there were too many of their
    type; over MQTT alone."""


class FormatLossState(Document):
    """What a packed format loses against `full` on this model, over a built-in text."""

    kl_divergence: Annotated[float, Field(json_schema_extra={"minimum": 0})] | None
    """Mean of KL(full || format) over positions, in nats; null where logits are not numbers."""
    top1_agreement: Annotated[float, Field(json_schema_extra={"minimum": 0, "maximum": 1})]
    """Share of positions at which both hold the same token for the likeliest."""
    perplexity: float | None
    struck: bool
    """Whether it lost too much and was taken from the ladder."""


class CalibrationState(Document):
    """How the model was calibrated."""

    num_tokens: Count
    """Of the text that was run."""
    num_positions: Count
    """Positions that were compared."""
    perplexity: float | None
    """Of `full`."""
    max_kl: float
    """`cache.max_kl`: formats beyond it are struck."""
    formats: dict[str, FormatLossState]


class InfoDocument(Document):
    """What seldom changes while the process runs."""

    schema_: Literal["adaptive-kv.info/1"] = Field(alias="schema")
    node: Node
    boot_id: str
    time: Time
    """When this document was made."""
    versions: dict[str, str]
    """By name of the package; `python` too."""
    device: str
    model: str
    """The name that clients use."""
    memory_source: str
    ladder: tuple[Mode, ...]
    """As it stands after calibration, from the mode that is wanted to the last resort."""
    calibration: CalibrationState | None
    """Null where nothing was measured: no lossy mode on the ladder, or no room for it."""
    schemas: tuple[str, ...]
    """Ids of the documents that this node publishes."""
    commands: tuple[str, ...] = ()
    """What this node obeys over MQTT; none where that is off."""
    decode: Annotated[str, Field(json_schema_extra={"enum": ["graphs", "layers"]})] = "layers"
    """How decode steps are started: `graphs` captured at load, or one of the `layers` after the
    other, as on a CPU; the log says why on a GPU."""
