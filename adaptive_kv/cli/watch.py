"""`adaptive-kv watch`: every box that publishes over MQTT, in a terminal."""

import asyncio
import json
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from adaptive_kv.cli import options
from adaptive_kv.errors import AdaptiveKVError, ConfigError

if TYPE_CHECKING:
    from adaptive_kv.config import MqttSettings
    from adaptive_kv.mqtt.fleet import Fleet, Notice
    from adaptive_kv.mqtt.follower import Follower

_FIRST_S, _QUIET_S = 3.0, 0.5
_REFRESH_S = 0.5


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
    last_s = began_s = asyncio.get_running_loop().time()
    num_heard = 0

    def hear(topic: str, payload: bytes) -> None:
        nonlocal last_s, num_heard
        last_s, num_heard = asyncio.get_running_loop().time(), num_heard + 1
        fleet.take(topic, payload)

    follower.on_message = hear
    while not follower.stop.is_set():
        now_s = asyncio.get_running_loop().time()
        if now_s - began_s > _FIRST_S or (num_heard and now_s - last_s > _QUIET_S):
            follower.stop.set()
        await asyncio.sleep(0.05)
    await following
    if not follower.is_connected:
        raise AdaptiveKVError(f"{settings.url}: {follower.last_error or 'does not answer'}")
    return fleet


async def _write_lines(settings: "MqttSettings", node: str) -> None:
    fleet, follower = _follow(settings, node)
    follower.on_message = lambda topic, payload: _write(fleet.take(topic, payload))
    await follower.run()


def _write(notices: "Iterable[Notice]") -> None:
    from adaptive_kv.cli.watch_view import line

    for notice in notices:
        typer.echo(line(notice))


async def _watch_screen(settings: "MqttSettings", node: str) -> None:
    from rich.live import Live

    from adaptive_kv.cli.watch_view import view

    fleet, follower = _follow(settings, node)
    following = asyncio.create_task(follower.run())
    with Live(screen=True, auto_refresh=False) as live:
        while not follower.stop.is_set():
            why_not = None if follower.is_connected else follower.last_error or "connecting"
            live.update(view(fleet, settings.url or "", why_not, live.console.size), refresh=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_S):
                    await follower.stop.wait()
    await following


def _show_json(fleet: "Fleet") -> None:
    typer.echo(json.dumps({"boxes": [box.to_dict() for box in fleet.by_trouble()]}))


def _show(fleet: "Fleet", url: str) -> None:
    from rich.console import Console

    from adaptive_kv.cli.watch_view import view

    console = Console()
    console.print(view(fleet, url, None, console.size))
