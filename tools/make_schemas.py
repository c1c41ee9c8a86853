"""Writes what outsiders may rely on over MQTT and HTTP: JSON Schemas and an AsyncAPI document.

python tools/make_schemas.py            write docs/schemas/ and docs/asyncapi.json
python tools/make_schemas.py --check    fail when a committed file is stale
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from adaptive_kv import __version__
from adaptive_kv.documents import (
    COMMANDS,
    CommandResult,
    DiscoveryDocument,
    Document,
    EventDocument,
    InfoDocument,
    StateDocument,
)

_DOCS = Path(__file__).parents[1] / "docs"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_MODELS: dict[str, type[Document]] = {
    "info": InfoDocument,
    "state": StateDocument,
    "event": EventDocument,
    "cmd-result": CommandResult,
    "discovery": DiscoveryDocument,
}
_PUBLISHED = ("availability", *_MODELS)
_UNRETAINED = {"event", "cmd-result"}
_NODE = r"^[a-z0-9][a-z0-9_-]{0,62}$"
_BINDING = "0.2.0"
_DISCOVERY_ADDRESS = "homeassistant/device/{node}/config"


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail when stale")
    is_check = parser.parse_args().check
    stale = [(file, text) for file, text in files() if not _has(file, text)]
    for file, text in stale:
        print(f"{file.relative_to(_DOCS.parent)} {'is stale' if is_check else 'written'}")
        if not is_check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
    if stale and is_check:
        print("run: python tools/make_schemas.py")
    return int(is_check and bool(stale))


def files() -> Iterator[tuple[Path, str]]:
    """Every generated file with what it should hold."""
    for name, model in _MODELS.items():
        yield _DOCS / "schemas" / f"{name}.json", _text(schema(name, model))
    for name, command in COMMANDS.items():
        yield _DOCS / "schemas" / "cmd" / f"{name}.json", _text(command_schema(name, command))
    yield _DOCS / "asyncapi.json", _text(asyncapi())


def schema(name: str, model: type[Document]) -> dict[str, Any]:
    """JSON Schema of one document. It permits more fields than there are: some may be added."""
    made = model.model_json_schema(mode="serialization", by_alias=True)
    for part in (made, *made.get("$defs", {}).values()):
        part.pop("additionalProperties", None)
    return _headed(name, made)


def command_schema(name: str, model: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema of one command. A field that it does not know is refused."""
    return _headed(f"cmd:{name}", model.model_json_schema())


def asyncapi() -> dict[str, Any]:
    """The topics, what they carry and how."""
    published = {name: _message(model, f"{name}.json") for name, model in _MODELS.items()}
    commands = {name: _message(model, f"cmd/{name}.json") for name, model in COMMANDS.items()}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "adaptive-kv over MQTT",
            "version": __version__,
            "description": "What one node tells about its cache, and what it obeys where "
            "mqtt.commands is on. Within a boot, order documents of one kind by seq, never by "
            "time.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            **{name: _channel(name, _address(name)) for name in _PUBLISHED},
            **{name: _channel(name, _address(f"cmd/{name}")) for name in COMMANDS},
        },
        "operations": {
            **{f"publish_{name}": _operation(name) for name in _PUBLISHED},
            **{f"obey_{name}": _command_operation(name) for name in COMMANDS},
        },
        "components": {
            "messages": {"availability": _availability(), **published, **commands},
            "parameters": {
                "base": {"description": "mqtt.base of the node", "default": "adaptive-kv"},
                "node": {"description": f"Name of the node, {_NODE}"},
            },
        },
    }


def _headed(name: str, made: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": _DIALECT, "$id": f"urn:adaptive-kv:{name}:1", **made}


def _address(place: str) -> str:
    return _DISCOVERY_ADDRESS if place == "discovery" else f"{{base}}/v1/{{node}}/{place}"


def _channel(name: str, address: str) -> dict[str, Any]:
    parameters = [key for key in ("base", "node") if f"{{{key}}}" in address]
    return {
        "address": address,
        "parameters": {key: {"$ref": f"#/components/parameters/{key}"} for key in parameters},
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
    }


def _operation(name: str) -> dict[str, Any]:
    binding = {"qos": 1, "retain": name not in _UNRETAINED, "bindingVersion": _BINDING}
    if name == "state":
        binding["messageExpiryInterval"] = {"type": "integer", "description": "3 heartbeats"}
    return {"action": "send", **_carried(name), "bindings": {"mqtt": binding}}


def _command_operation(name: str) -> dict[str, Any]:
    binding = {"qos": 1, "retain": False, "bindingVersion": _BINDING}
    return {
        "action": "receive",
        **_carried(name),
        "reply": _carried("cmd-result"),
        "bindings": {"mqtt": binding},
    }


def _carried(name: str) -> dict[str, Any]:
    return {
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
    }


def _availability() -> dict[str, Any]:
    return {
        "summary": "Whether the node is there; offline is also its last will.",
        "contentType": "text/plain",
        "payload": {"type": "string", "enum": ["online", "offline"]},
    }


def _message(model: type[BaseModel], file: str) -> dict[str, Any]:
    return {
        "summary": (model.__doc__ or "").strip().splitlines()[0],
        "contentType": "application/json",
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": {"$ref": f"./schemas/{file}"},
        },
    }


def _has(file: Path, text: str) -> bool:
    return file.exists() and file.read_text("utf-8") == text


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
