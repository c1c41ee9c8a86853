"""The few errors of this package. Each carries its data and says what to do."""

from dataclasses import dataclass
from pathlib import Path


class AdaptiveKVError(Exception):
    """Anything this package raises on purpose."""


class ConfigError(AdaptiveKVError):
    """The configuration is wrong; the command exits with status 78."""


class ModelError(AdaptiveKVError):
    """The model cannot be served as it is; the command exits with status 78."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(f"cannot serve {model!r}: {why}")
        self.model = model
        self.why = why


class PolicyError(AdaptiveKVError):
    """A policy cannot be loaded."""

    def __init__(self, policy: str, why: str) -> None:
        super().__init__(f"cannot load policy {policy!r}: {why}")
        self.policy = policy
        self.why = why


class SensorError(AdaptiveKVError):
    """A memory source did not answer, or its answer makes no sense."""

    def __init__(self, source: str, why: str) -> None:
        super().__init__(f"memory source {source!r}: {why}")
        self.source = source
        self.why = why


class TraceError(AdaptiveKVError):
    """A trace cannot be read; the command exits with status 78."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"cannot read trace {path}: {why}")
        self.path = path
        self.why = why


class UnknownModeError(AdaptiveKVError, ValueError):
    """A string that names no cache mode."""

    def __init__(self, mode: object) -> None:
        super().__init__(
            f"unknown cache mode {mode!r}: use full, int8, int4, disabled, window:N, "
            "window:N+int8 or window:N+int4"
        )
        self.mode = mode


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused or failed, in the terms of an OpenAI error.

    `status` is the HTTP status; `retry_after_s` is set where trying again later helps.
    """

    message: str
    status: int = 400
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None


class RequestError(AdaptiveKVError):
    """A request that cannot be served; carries the `Refusal` the client is shown."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
