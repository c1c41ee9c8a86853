"""`adaptive-kv watch`: every box that publishes over MQTT, in a terminal."""

import asyncio
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from adaptive_kv.cli import options
from adaptive_kv.errors import AdaptiveKVError, ConfigError

if TYPE_CHECKING:
    from adaptive_kv.config import MqttSettings
    from adaptive_kv.mqtt.fleet import Fleet
    from adaptive_kv.mqtt.follower import Follower

_FIRST_S, _QUIET_S = 3.0, 0.5
_REFRESH_S = 0.5
_MIN_LINES = 40
_MAX_FAILURES = 2
"""One for each version of MQTT."""


def watch(
    config: options.ConfigFile = None,
    mqtt_url: options.MqttUrl = None,
    node: Annotated[
        str, typer.Option("--node", metavar="NAME|+", help="Which box; + is all of them.")
    ] = "+",
    once: Annotated[bool, typer.Option("--once", help="Show what is known, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As --once, one JSON document.")] = False,
) -> None:
    """Show how boxes are, the worst first, and what happens to them; nothing but MQTT is needed.

    Without a terminal it writes a line for everything that happens.

    Example: `adaptive-kv watch --mqtt-url mqtt://broker.local --node +`
    """
    from adaptive_kv.config import load_settings
    from adaptive_kv.mqtt.topics import is_node

    if node != "+" and not is_node(node):
        raise ConfigError(f"--node: {node!r} is no name for a node; + is all of them")
    settings = load_settings(config, {"mqtt": {"url": mqtt_url}}).mqtt
    if settings.url is None:
        raise ConfigError("whose? give --mqtt-url, or set mqtt.url")
    if as_json or once:
        fleet = asyncio.run(_look_once(settings, node))
        _show_json(fleet) if as_json else _show(fleet, settings.url)
    elif sys.stdout.isatty():
        asyncio.run(_watch_screen(settings, node))
    else:
        asyncio.run(_write_lines(settings, node))


def _follow(settings: "MqttSettings", node: str) -> "tuple[Fleet, Follower]":
    from adaptive_kv.mqtt.fleet import Fleet
    from adaptive_kv.mqtt.follower import Follower
    from adaptive_kv.mqtt.link import Broker

    fleet = Fleet(settings.base)
    follower = Follower(Broker.of(settings), settings.base, node, fleet.take)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, follower.stop.set)
    return fleet, follower


async def _look_once(settings: "MqttSettings", node: str) -> "Fleet":
    """All that the broker has kept: until nothing more comes for a moment."""
    fleet, follower = _follow(settings, node)
    following = asyncio.create_task(follower.run())
    began_s, heard_s = time.monotonic(), None

    def hear(topic: str, payload: bytes) -> None:
        nonlocal heard_s
        heard_s = time.monotonic()
        fleet.take(topic, payload)

    follower.on_message = hear
    while not follower.stop.is_set():
        now_s = time.monotonic()
        is_quiet = heard_s is not None and now_s - heard_s > _QUIET_S
        if is_quiet or now_s - began_s > _FIRST_S or follower.num_failures >= _MAX_FAILURES:
            follower.stop.set()
        await asyncio.sleep(0.05)
    await following
    if not follower.is_connected:
        raise AdaptiveKVError(f"{settings.url}: {follower.last_error or 'does not answer'}")
    return fleet


async def _write_lines(settings: "MqttSettings", node: str) -> None:
    """Until told to stop, or until nobody reads any more."""
    from adaptive_kv.cli.watch_view import clean, line
    from adaptive_kv.mqtt.upkeep import rest

    fleet, follower = _follow(settings, node)

    def write(topic: str, payload: bytes) -> None:
        try:
            for notice in fleet.take(topic, payload):
                typer.echo(line(notice))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            follower.stop.set()

    follower.on_message = write
    following, is_told = asyncio.create_task(follower.run()), False
    while not follower.stop.is_set():
        is_away = not follower.is_connected and follower.last_error is not None
        if is_away and not is_told:
            typer.echo(f"broker away: {clean(follower.last_error or '')}", err=True)
        is_told = is_away
        await rest(follower.stop, _REFRESH_S)
    await following


async def _watch_screen(settings: "MqttSettings", node: str) -> None:
    from rich.live import Live

    from adaptive_kv.cli.watch_view import view
    from adaptive_kv.mqtt.upkeep import rest

    fleet, follower = _follow(settings, node)
    following = asyncio.create_task(follower.run())
    with Live(screen=True, auto_refresh=False) as live:
        while not follower.stop.is_set():
            why_not = None if follower.is_connected else follower.last_error or "connecting"
            live.update(view(fleet, settings.url or "", why_not, live.console.size), refresh=True)
            await rest(follower.stop, _REFRESH_S)
    await following


def _show_json(fleet: "Fleet") -> None:
    typer.echo(json.dumps({"boxes": [box.to_dict() for box in fleet.by_trouble()]}))


def _show(fleet: "Fleet", url: str) -> None:
    from rich.console import Console

    from adaptive_kv.cli.watch_view import view

    console = Console()
    whole = console.size._replace(height=_MIN_LINES + 2 * len(fleet.boxes))
    console.print(view(fleet, url, None, whole))
