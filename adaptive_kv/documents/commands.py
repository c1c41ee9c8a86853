"""What may be ordered over MQTT, and what is answered. Nothing here names a path, a URL or code."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from adaptive_kv.documents.models import MODE_PATTERN, Document

AUTO = "auto"
"""In the place of a mode: return to the policy."""


class CommandId(BaseModel):
    """What an answer is matched by."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
    """Chosen by who orders. A second command of the same id is not obeyed."""


class Command(CommandId):
    """An order to this node. Its topic says which one it is."""

    not_after: Annotated[
        AwareDatetime,
        Field(
            json_schema_extra={
                "type": ["string", "number"],
                "examples": ["2026-11-23T03:52:08Z", 1795405928],
            }
        ),
    ]
    """RFC 3339 with an offset, or seconds since the epoch; by the clock of the node. What arrives
    later is not obeyed: a broker may keep a command for a minute."""


class SetMode(Command):
    """Hold a mode whatever the policy says; the guard still rules."""

    mode: Annotated[
        str, Field(max_length=32, json_schema_extra={"pattern": rf"^{AUTO}$|{MODE_PATTERN}"})
    ]
    """`auto` returns to the policy."""


class ResumeAuto(Command):
    """Return to the policy."""


class ReloadConfig(Command):
    """Load the configuration anew, as SIGHUP does."""


class Ping(Command):
    """Do nothing but answer."""


COMMANDS: Mapping[str, type[Command]] = MappingProxyType(
    {
        "set-mode": SetMode,
        "resume-auto": ResumeAuto,
        "reload-config": ReloadConfig,
        "ping": Ping,
    }
)
"""All there are, by the last word of their topics."""


class CommandResult(Document):
    """What became of a command."""

    id: str | None
    """Of the command; null where it could not be read."""
    status: Literal["ok", "error"]
    error: str | None
    """Why not; null where it was obeyed."""
