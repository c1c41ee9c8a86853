"""What can be configured: sections, keys, types, defaults. `config` fills it from its sources."""

import ipaddress
import json
import re
import socket
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from adaptive_kv.policy import CacheMode

ENV_PREFIX = "ADAPTIVE_KV_"

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
_SOURCES = ("auto", "nvml", "cuda", "meminfo", "cgroup", "budget")


def parse_size(size: str | float) -> int:
    """Bytes of `512MiB`, `1.5GiB`, `64KiB` or a plain number; fractions of a byte are dropped.

    Raises `ValueError` that shows the accepted spellings.
    """
    found = None if isinstance(size, bool) else _SIZE.fullmatch(str(size).strip())
    if found is None or found[2].upper() not in _UNITS:
        raise ValueError(f"{size!r} is not a size; write 512MiB, 1.5GiB or a number of bytes")
    return int(Fraction(found[1]) * _UNITS[found[2].upper()])


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def default_node() -> str:
    """The host's name, made to fit what a node may be called."""
    name = re.sub(r"[^a-z0-9_-]+", "-", socket.gethostname().lower()).lstrip("-_")
    return name[:63] or "node"


def _decoded(value: object) -> object:
    """Read JSON where only strings can be given: environment, credentials, flags."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from None


def _listed(value: object) -> object:
    """Let a list be written as JSON or with commas where only strings can be given."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",") if part.strip()]
    return _decoded(value)


def _ladder(ladder: tuple[CacheMode, ...]) -> tuple[CacheMode, ...]:
    twice = sorted({mode for mode in ladder if ladder.count(mode) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} stands on the ladder twice")
    return ladder


def _memory_source(source: str) -> str:
    if source in _SOURCES or (source.startswith("file:") and len(source) > len("file:")):
        return source
    raise ValueError(f"{source!r} is no memory source; use {', '.join(_SOURCES)} or file:PATH")


def _broker(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname:
        raise ValueError("not a broker's address; write mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")
    if parts.username is not None or parts.password is not None:
        raise ValueError("keep credentials out of the address; set mqtt.username and mqtt.password")
    _ = parts.port  # raises a ValueError that names what is wrong with it
    return url


Bytes = Annotated[int, BeforeValidator(parse_size)]
SomeBytes = Annotated[Bytes, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Mode = Annotated[CacheMode, PlainValidator(CacheMode)]
Secret = Annotated[SecretStr, Field(min_length=1)]
Source = Annotated[str, AfterValidator(_memory_source)]
BrokerUrl = Annotated[str, AfterValidator(_broker)]
Node = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]
Options = Annotated[dict[str, Any], NoDecode, BeforeValidator(_decoded)]
Ladder = Annotated[
    tuple[Mode, ...],
    NoDecode,
    BeforeValidator(_listed),
    Field(min_length=1),
    AfterValidator(_ladder),
]


class Section(BaseModel):
    """What all sections share: unknown keys are errors, values cannot change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class ModelSettings(Section):
    """Which model, and how it is loaded."""

    path: str | None = None
    """A folder or a hub id; none is the embedded model."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_context: int | None = Field(default=None, gt=0)
    """Longest sequence in tokens; none is what the model allows."""
    revision: str | None = None
    quantization: str | None = None
    """How the weights are quantized; none is as they are stored."""
    graphs: bool = True
    """Whether decode steps are captured at load on a GPU, and replayed."""


class ServerSettings(Section):
    """The HTTP side and how much work it takes on."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8787, ge=0, le=65535)
    """0 takes any free port."""
    token: Secret | None = None
    """Bearer token that every route but /healthz asks for."""
    allowed_hosts: Names = ()
    """Host headers accepted besides the address that is listened on."""
    max_body: SomeBytes = 4 * 2**20
    max_waiting: int = Field(default=64, ge=0)
    """How many requests may wait; more are answered with 429."""
    max_wait_s: Seconds = 60.0
    """How long a request may wait or stay parked before it gets 503."""
    max_running: int = Field(default=16, gt=0)
    max_tokens_per_step: int = Field(default=512, gt=0)
    """Token budget of one step, shared by prefill and decodes."""
    drain_timeout_s: Seconds = 30.0

    @model_validator(mode="after")
    def _guard_the_door(self) -> Self:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"server.host {self.host} can be reached from other machines; set server.token, "
                "or listen on 127.0.0.1"
            )
        return self


def _default_floor(memory: dict[str, Any]) -> int:
    """What is left free where nothing is said, given what was said about `memory`."""
    budget = memory.get("budget")
    return min(256 * 2**20, budget // 8) if budget else 256 * 2**20


class MemorySettings(Section):
    """Where memory truth comes from, and what is left to others."""

    source: Source = "auto"
    budget: SomeBytes | None = None
    """Cap on weights, cache and workspace of this process."""
    floor: Bytes = Field(default_factory=_default_floor)
    """To be left free on the device for others; of a small budget an eighth at most."""
    poll_hz: float = Field(default=20.0, gt=0, le=1000)
    max_age_s: Seconds = 2.0
    """A sample older than this makes the guard conservative."""

    @model_validator(mode="after")
    def _budget_leaves_room(self) -> Self:
        if self.source == "budget" and self.budget is None:
            raise ValueError("memory.source is budget, but memory.budget is not set")
        if self.source == "budget" and self.budget is not None and self.floor >= self.budget:
            raise ValueError("memory.floor leaves nothing of memory.budget; make it smaller")
        return self


class CacheSettings(Section):
    """In which forms the cache is kept."""

    ladder: Ladder = tuple(
        CacheMode(mode) for mode in ("full", "int8", "int4", "window:1024+int4", "disabled")
    )
    """Modes from the one wanted with room to spare to the last resort."""
    sinks: int = Field(default=16, ge=0)
    """First tokens of a sequence that are never packed or dropped."""
    recent: int = Field(default=128, ge=0)
    """Newest tokens that are never packed."""
    slab: SomeBytes = 16 * 2**20
    """Unit in which device memory is taken and given back."""
    switch_bytes_per_step: SomeBytes = 64 * 2**20
    """How much a switch may convert between two steps."""
    switch_share: float = Field(default=0.3, gt=0, allow_inf_nan=False)
    """Of the time of a step, how much longer one may take in which a switch converts something;
    twice as much where something is healed."""
    prefix: bool = True
    """Let sequences that begin alike share pages, and keep those of ended ones while memory is
    free."""
    heal: bool = True
    """Recompute inexact pages when there is room and time."""
    max_kl: Seconds = 0.1
    """KL divergence from full beyond which a format is struck from the ladder."""


class PolicySettings(Section):
    """Who decides, and how patient the guard is."""

    name: str = Field(default="ladder", min_length=1)
    """An installed policy, one of the drop-in folder, or path/to/file.py:Name."""
    deadline_s: Seconds = 0.1
    """A policy slower than this counts as faulty."""
    min_dwell_s: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    """Shortest stay in a mode before going up again."""
    options: Options = Field(default_factory=dict)
    """Keyword arguments of the policy."""


class MqttSettings(Section):
    """Publishing; off while `url` is not set."""

    url: BrokerUrl | None = None
    base: str = Field(default="adaptive-kv", pattern=r"^[^+#/\s]+(/[^+#/\s]+)*$")
    node: Node = Field(default_factory=default_node)
    username: str | None = None
    password: Secret | None = None
    ca_file: Path | None = None
    commands: bool = False
    """Whether commands over MQTT are obeyed."""
    homeassistant: bool = False
    heartbeat_s: Seconds = 30.0


class TraceSettings(Section):
    """Recording of readings and decisions, for `replay`; off while `path` is not set."""

    path: Path | None = None
    """Folder of the segments; made if it is not there."""
    max_bytes: Annotated[Bytes, Field(ge=2**20)] = 64 * 2**20
    """Of all segments together; the oldest is deleted for a new one."""
    hz: float = Field(default=1.0, ge=0.2, le=100)
    """Readings per second while nothing changes."""


class LogSettings(Section):
    """What is logged, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
    """auto is console on a terminal, entries with fields in systemd's journal, JSON otherwise."""


class Settings(BaseSettings):
    """All sections; `load_settings` makes one from every source."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
    )

    model: ModelSettings = ModelSettings()
    server: ServerSettings = ServerSettings()
    memory: MemorySettings = MemorySettings()
    cache: CacheSettings = CacheSettings()
    policy: PolicySettings = PolicySettings()
    mqtt: MqttSettings = Field(default_factory=MqttSettings)
    log: LogSettings = LogSettings()
    trace: TraceSettings = TraceSettings()
