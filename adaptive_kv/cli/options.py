"""Flags that several commands share, and how they become settings."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from adaptive_kv.errors import ConfigError, UnknownModeError
from adaptive_kv.policy import CacheMode

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file; flags and environment go before it."),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="DIR_OR_ID", help="Folder or hub id [default: embedded]."),
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="auto|cuda|cpu", help="Where the model runs.")
]
DType = Annotated[
    str | None,
    typer.Option("--dtype", metavar="DTYPE", help="auto, bfloat16, float16 or float32."),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option("--memory-budget", metavar="SIZE", help="Use no more than this, e.g. 512MiB."),
]
MemorySource = Annotated[
    str | None,
    typer.Option("--memory-source", metavar="SOURCE", help="auto, nvml, meminfo, file:PATH, ..."),
]
Mode = Annotated[
    str | None,
    typer.Option("--mode", metavar="MODE", help="Hold this mode; the guard still rules."),
]
PolicyName = Annotated[
    str | None,
    typer.Option("--policy", metavar="NAME_OR_FILE", help="Who decides, e.g. my.py:Mine."),
]
MqttUrl = Annotated[
    str | None, typer.Option("--mqtt-url", metavar="URL", help="Broker, e.g. mqtt://127.0.0.1.")
]
Node = Annotated[str | None, typer.Option("--node", metavar="NAME", help="This box, over MQTT.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def engine_flags(
    *,
    model: str | None,
    device: str | None,
    dtype: str | None,
    memory_budget: str | None,
    memory_source: str | None,
) -> dict[str, dict[str, Any]]:
    """The flags about the model and its memory, by section and key."""
    return {
        "model": {"path": model, "device": device, "dtype": dtype},
        "memory": {"budget": memory_budget, "source": memory_source},
    }


def parse_mode(mode: str | None) -> CacheMode | None:
    """The mode of `--mode`. Raises `ConfigError` for one that does not exist."""
    try:
        return None if mode is None else CacheMode(mode)
    except UnknownModeError as error:
        raise ConfigError(f"--mode: {error}") from None


def parse_json(flag: str, text: str) -> dict[str, Any]:
    """The JSON object given to `flag`. Raises `ConfigError` for anything else."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{flag}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f'{flag}: give a JSON object, such as {{"low": 0.7}}')
    return value
