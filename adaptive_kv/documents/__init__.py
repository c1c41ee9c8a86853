"""The public documents of this service: what HTTP and MQTT show of it, as JSON.

Within a boot, order documents of one kind by `seq`, never by `time`. Readers must bear fields
that they do not know; a change that would break them gets another schema id.
"""

from adaptive_kv.documents.commands import (
    AUTO,
    COMMANDS,
    Command,
    CommandId,
    CommandResult,
    SetMode,
)
from adaptive_kv.documents.homeassistant import DiscoveryDocument
from adaptive_kv.documents.make import (
    DocumentMaker,
    calibration_state,
    event_document,
    info_document,
    new_boot_id,
    rfc3339,
    state_document,
)
from adaptive_kv.documents.models import (
    EVENT_SCHEMA,
    INFO_SCHEMA,
    STATE_SCHEMA,
    CalibrationState,
    Document,
    EventDocument,
    InfoDocument,
    StateDocument,
)

__all__ = [
    "AUTO",
    "COMMANDS",
    "EVENT_SCHEMA",
    "INFO_SCHEMA",
    "STATE_SCHEMA",
    "CalibrationState",
    "Command",
    "CommandId",
    "CommandResult",
    "DiscoveryDocument",
    "Document",
    "DocumentMaker",
    "EventDocument",
    "InfoDocument",
    "SetMode",
    "StateDocument",
    "calibration_state",
    "event_document",
    "info_document",
    "new_boot_id",
    "rfc3339",
    "state_document",
]
