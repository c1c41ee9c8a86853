"""The committed JSON Schemas of the documents, to hold against what really is published."""

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from broker import Heard
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

_SCHEMAS = Path(__file__).parents[1] / "docs" / "schemas"


def validate(name: str, document: Mapping[str, Any]) -> None:
    """Raise `jsonschema.ValidationError` unless `document` is a valid `name`."""
    _validator(name).validate(document)


@functools.cache
def _validator(name: str) -> Any:
    schema = json.loads((_SCHEMAS / f"{name}.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def validate_all(heard: Iterable[Heard]) -> None:
    """Every message, by its topic; one of an unknown topic is an error, too."""
    for message in heard:
        kind = message.topic.rpartition("/")[2]
        if kind == "availability":
            assert message.text in {"online", "offline"}
        elif message.topic.startswith("homeassistant/"):
            validate("discovery", message.json)
        elif "/cmd/" in message.topic:
            validate(f"cmd/{kind}", message.json)
        else:
            validate(kind, message.json)
