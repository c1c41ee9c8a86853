"""What a client may write: OpenAI's requests, vLLM's additions and ours."""

from abc import abstractmethod
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from adaptive_kv.errors import UnknownModeError
from adaptive_kv.policy import CacheMode
from adaptive_kv.server.neutral import without_neutral
from adaptive_kv.server.refusals import refuse, refuse_invalid

MAX_CHOICES = 8
MAX_STOPS = 16
MAX_LOGPROBS = 20


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _mode(value: Any, param: str = "adaptive_kv.allow") -> CacheMode:
    try:
        return CacheMode(value)
    except UnknownModeError as error:
        raise refuse(str(error), param=param, code="invalid_mode") from None


Mode = Annotated[CacheMode, PlainValidator(_mode)]
Count = Annotated[int, Field(ge=1, le=2**31)]
TokenId = Annotated[int, Field(ge=0)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
Alternatives = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(_Wire):
    """Which usage a stream reports; padding (`include_obfuscation`) is never added."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class Extension(_Wire):
    """Our own part of a request."""

    allow: Annotated[list[Mode], Field(min_length=1)] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0


class Sampled(_Wire):
    """What both kinds of request share; None is the default of each."""

    model: Annotated[str, Field(max_length=256)] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[Stop], BeforeValidator(_listed), Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    adaptive_kv: Extension | None = None

    @model_validator(mode="after")
    def _token_limits_agree(self) -> Self:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise refuse(
                "max_tokens and max_completion_tokens differ; give one of them",
                param="max_tokens",
                code="invalid_value",
            )
        if self.most_tokens is not None and (self.min_tokens or 0) > self.most_tokens:
            message = "min_tokens is more than max_tokens"
            raise refuse(message, param="min_tokens", code="invalid_value")
        return self

    @property
    def most_tokens(self) -> int | None:
        """How many tokens the client permits, under either name; None where it did not say."""
        return self.max_completion_tokens or self.max_tokens

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """How many alternatives to report per token; None reports nothing."""
        ...


class Message(_Wire):
    """One chat message; `content` is checked part by part where it is rendered."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Any = None
    name: str | None = None


class ChatRequest(Sampled):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None

    @model_validator(mode="after")
    def _alternatives_need_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            message = "top_logprobs needs logprobs set to true"
            raise refuse(message, param="top_logprobs", code="invalid_value")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """See `Sampled`."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampled):
    """`POST /v1/completions`; `prompt` is a string, token ids, or a list of either."""

    prompt: Any
    echo: bool | None = None
    logprobs: Alternatives | None = None

    @model_validator(mode="after")
    def _echo_has_no_logprobs(self) -> Self:
        if self.echo and self.logprobs is not None:
            message = "logprobs cannot be combined with echo; leave one of them out"
            raise refuse(message, param="logprobs", code="unsupported_parameter")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """See `Sampled`."""
        return self.logprobs


class ModeRequest(_Wire):
    """`PUT /admin/mode`; raises `invalid_mode` for a string that is none."""

    mode: Annotated[CacheMode, PlainValidator(lambda value: _mode(value, "mode"))]


Schema = TypeVar("Schema", bound=_Wire)


def validated(schema: type[Schema], body: Any) -> Schema:
    """`body` as `schema`. Raises `RequestError` that names the parameter to change."""
    if not isinstance(body, dict):
        raise refuse("the body must be a JSON object", code="invalid_json")
    if issubclass(schema, Sampled):
        body = without_neutral(body)
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        raise refuse_invalid(error) from None
