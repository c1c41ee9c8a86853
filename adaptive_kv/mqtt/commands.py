"""What is ordered over MQTT: checked, obeyed once, answered, and written to the log.

    link -- take --> checks -- task --> Orders -- result --> outbox

Nothing here waits for the broker: what became of a command is told when it can be.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from adaptive_kv.documents import AUTO, COMMANDS, Command, CommandId, CommandResult, SetMode
from adaptive_kv.engine.card import ModelCard
from adaptive_kv.engine.client import EngineClient
from adaptive_kv.errors import AdaptiveKVError
from adaptive_kv.mqtt.outbox import Bucket
from adaptive_kv.policy import CacheMode

_MAX_BYTES = 4096
_MAX_NAME_CHARS = 32
_COMMANDS_PER_S, _COMMAND_BURST = 1.0, 10
_MAX_REMEMBERED = 1024
_MAX_UNTOLD = 64
_PIN_S = 2.0
_MAX_ERROR_CHARS = 500
_log = structlog.get_logger(__name__)


class CommandError(AdaptiveKVError):
    """Why a command was not obeyed, in words for who ordered it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What commands can reach of this service."""

    client: EngineClient
    card: ModelCard
    reload: Callable[[], Awaitable[object]]
    """Loads the configuration anew; raises an `AdaptiveKVError` where that is refused."""

    async def obey(self, name: str, command: Command) -> None:
        """Do what is ordered. Raises an `AdaptiveKVError` that says why it was not done."""
        if isinstance(command, SetMode) and command.mode != AUTO:
            await self._pin(CacheMode(command.mode))
        elif name in {"set-mode", "resume-auto"}:
            self.client.unpin()
            await self._shown(None)
        elif name == "reload-config":
            await self.reload()

    async def _pin(self, mode: CacheMode) -> None:
        if not self.card.supports(mode):
            raise CommandError(f"{mode} cannot be used with {self.card.name!r}")
        self.client.pin(mode)
        await self._shown(mode)

    async def _shown(self, mode: CacheMode | None) -> None:
        await self.client.until_pinned(mode, _PIN_S)
        if self.client.status.pinned != (mode is not None):
            raise CommandError(f"the worker has not taken it up within {_PIN_S:g} s")


class Commands:
    """Takes commands and keeps what became of them until it is told.

    Ignored, but for the log: what was retained, and what has an id that was seen before.
    `clock` is wall time in seconds. All of it belongs to one event loop.
    """

    def __init__(self, orders: Orders, clock: Callable[[], float] = time.time) -> None:
        self.untold: deque[CommandResult] = deque(maxlen=_MAX_UNTOLD)
        """Answers that the broker has not taken yet, oldest first."""
        self._orders = orders
        self._clock = clock
        self._bucket = Bucket(_COMMANDS_PER_S, _COMMAND_BURST)
        self._num_refused = 0
        self._seen: dict[str, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, name: str, payload: bytes, *, is_retained: bool) -> None:
        """One command as it came in; waits for nothing."""
        name = name[:_MAX_NAME_CHARS]
        if not self._has_room():
            return
        if is_retained:
            _log.warning("command_ignored", command=name, why="commands are not to be retained")
            return
        self._check(name, payload)

    def told(self, result: CommandResult) -> None:
        """The broker has taken the oldest answer, if it was not given up meanwhile."""
        if self.untold and self.untold[0] is result:
            self.untold.popleft()

    async def close(self) -> None:
        """Obey nothing more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _has_room(self) -> bool:
        """Whether one more is dealt with; of a flood one is answered, and all are counted."""
        if self._bucket.take(time.monotonic()):
            if self._num_refused:
                _log.warning("commands_refused", number=self._num_refused)
            self._num_refused = 0
            return True
        self._num_refused += 1
        if self._num_refused == 1:
            pace = f"{_COMMAND_BURST} at once and {_COMMANDS_PER_S:g} a second are taken"
            self._tell("any", None, f"too many commands: {pace}")
        return False

    def _check(self, name: str, payload: bytes) -> None:
        try:
            command = _parsed(name, payload)
        except CommandError as error:
            self._tell(name, _id_of(payload), str(error))
            return
        if command.id in self._seen:
            _log.warning("command_ignored", command=name, id=command.id, why="seen before")
            return
        self._remember(command.id)
        late_s = self._clock() - command.not_after.timestamp()
        if late_s > 0:
            self._tell(name, command.id, f"{late_s:.1f} s too late by the clock of this node")
            return
        task = asyncio.get_running_loop().create_task(self._obey(name, command), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _remember(self, id_: str) -> None:
        self._seen[id_] = None
        if len(self._seen) > _MAX_REMEMBERED:
            del self._seen[next(iter(self._seen))]

    async def _obey(self, name: str, command: Command) -> None:
        try:
            await self._orders.obey(name, command)
        except AdaptiveKVError as error:
            self._tell(name, command.id, " ".join(str(error).split()))
        except Exception:  # noqa: BLE001 - a command must never end the service
            _log.exception("command_failed", command=name)
            self._tell(name, command.id, "internal error; the log has it")
        else:
            self._tell(name, command.id, None)

    def _tell(self, name: str, id_: str | None, error: str | None) -> None:
        """To who ordered it, and to who reads the log."""
        error = error and error[:_MAX_ERROR_CHARS]
        result = CommandResult(id=id_, status="error" if error else "ok", error=error)
        _log.info("command", command=name, **result.model_dump())
        self.untold.append(result)


def _parsed(name: str, payload: bytes) -> Command:
    if name not in COMMANDS:
        raise CommandError(f"there is no such command; there are {', '.join(COMMANDS)}")
    if len(payload) > _MAX_BYTES:
        raise CommandError(f"{len(payload)} bytes are too many; {_MAX_BYTES} are permitted")
    try:
        return COMMANDS[name].model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CommandError(": ".join(filter(None, [place, first["msg"]]))) from None


def _id_of(payload: bytes) -> str | None:
    """The id of a command that is wrong otherwise: whoever ordered it shall know its answer."""
    try:
        return CommandId.model_validate_json(payload[: _MAX_BYTES + 1], extra="ignore").id
    except ValidationError:
        return None
