"""What of the configuration can change while the service runs, and changing it."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from adaptive_kv.cli.hangups import Hangups
from adaptive_kv.cli.notify import notify
from adaptive_kv.config import Settings
from adaptive_kv.engine.mailbox import Reconfigure
from adaptive_kv.engine.service import Engine
from adaptive_kv.errors import ConfigError, PolicyError
from adaptive_kv.loader import start_policy
from adaptive_kv.log import configure_logging
from adaptive_kv.policy import CacheMode
from adaptive_kv.settings import Section

_RELOADED = {
    "cache": {"ladder"},
    "memory": {"floor"},
    "policy": {"name", "options", "deadline_s", "min_dwell_s"},
    "log": {"level"},
}
"""By section, the keys that can change; all others need a restart."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """What came of loading the configuration anew."""

    changed: tuple[str, ...]
    """Keys that have another value now."""
    need_restart: tuple[str, ...]
    """Keys that would have one if the service were started anew."""
    ladder: tuple[CacheMode, ...]
    """As the model can have it."""


class Reloader:
    """Brings a changed configuration into a running service, whole or not at all.

    The policy is started anew in any case: its file may have changed, or a fallback have taken
    its place.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        load: Callable[[], Settings],
        on_reloaded: Callable[[Reloaded], None],
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._load = load
        self._on_reloaded = on_reloaded
        self._lock = threading.Lock()

    def reload(self) -> Reloaded:
        """Load, check, and hand over to the worker; any thread, and it may take seconds.

        Tells systemd and the log. Raises `ConfigError` or `PolicyError`; nothing has changed then.
        """
        with self._lock:
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                return self._reload()
            except (ConfigError, PolicyError) as error:
                _log.error("reload_refused", error=" ".join(str(error).split()))
                raise
            finally:
                notify("READY=1")

    def _reload(self) -> Reloaded:
        loaded, before = self._load(), self._settings
        settings = _merged(before, loaded)
        ladder = self._check_ladder(settings)
        mail = _started(settings)
        configure_logging(settings.log)
        self._engine.mailbox.post(mail)
        self._settings = settings
        done = Reloaded(
            changed=tuple(_differences(before, settings)),
            need_restart=tuple(_differences(settings, loaded)),
            ladder=ladder,
        )
        self._on_reloaded(done)
        _log.info("reloaded", changed=done.changed, policy=mail.policy_name)
        if done.need_restart:
            _log.warning("restart_needed", keys=done.need_restart)
        return done

    def _check_ladder(self, settings: Settings) -> tuple[CacheMode, ...]:
        ladder = self._engine.controller.check_ladder(settings.cache.ladder)
        packed = [] if self._engine.calibration or _packed(self._settings) else _packed(settings)
        if packed:
            raise ConfigError(
                f"cache.ladder: {', '.join(packed)} cannot join it while the service runs: the "
                "model was not calibrated, as no rung was packed; start the service anew"
            )
        return ladder


class Reloads:
    """Reloads whenever it is asked to; those who ask while it reloads are served by one more.

    It has a thread of its own, which nobody who ends waits for: a policy may take long to load.
    """

    def __init__(self, reloader: Reloader) -> None:
        self._reloader = reloader
        self._told = threading.Event()
        self._asking: deque[asyncio.Future[Reloaded]] = deque()

    def start(self, hangups: Hangups) -> None:
        """Begin, and reload at every SIGHUP for as long as the running loop exists."""
        hangups.listen(self._told.set)
        threading.Thread(target=self._run, name="reload", daemon=True).start()

    async def ask(self) -> Reloaded:
        """Reload, and wait for it. Raises `ConfigError` or `PolicyError` where it is refused."""
        asked: asyncio.Future[Reloaded] = asyncio.get_running_loop().create_future()
        self._asking.append(asked)
        self._told.set()
        return await asked

    def _run(self) -> None:
        while self._told.wait():
            self._told.clear()
            asking = [self._asking.popleft() for _ in range(len(self._asking))]
            try:
                done: Reloaded | Exception = self._reloader.reload()
            except (ConfigError, PolicyError) as error:
                done = error  # it is in the log
            except Exception as error:  # noqa: BLE001 - the next reload may be a better one
                _log.exception("reload_failed")
                done = error
            for asked in asking:
                with suppress(RuntimeError):  # its loop is closed
                    asked.get_loop().call_soon_threadsafe(_answer, asked, done)


def _answer(asked: asyncio.Future[Reloaded], done: Reloaded | Exception) -> None:
    if asked.done():
        return  # nobody waits for it any more
    if isinstance(done, Exception):
        asked.set_exception(done)
    else:
        asked.set_result(done)


def _started(settings: Settings) -> Reconfigure:
    policy, name = start_policy(
        settings.policy.name, settings.policy.options, deadline_s=settings.policy.deadline_s
    )
    return Reconfigure(
        policy=policy,
        policy_name=name,
        ladder=settings.cache.ladder,
        min_dwell_s=settings.policy.min_dwell_s,
        deadline_s=settings.policy.deadline_s,
        floor_bytes=settings.memory.floor,
    )


def _merged(before: Settings, loaded: Settings) -> Settings:
    """`before`, but what can change as in `loaded`, defaults made anew. Raises `ConfigError`."""
    sections = {
        name: _section(name, getattr(before, name), getattr(loaded, name)) for name in _RELOADED
    }
    return before.model_copy(update=sections)


def _section(name: str, before: Section, loaded: Section) -> Section:
    keys = _RELOADED[name]
    values = {key: getattr(before, key) for key in before.model_fields_set - keys}
    values |= {key: getattr(loaded, key) for key in loaded.model_fields_set & keys}
    try:
        return type(before)(**values)
    except ValidationError as error:
        raise ConfigError(f"{name}: {error.errors()[0]['msg']}") from error


def _differences(one: Settings, other: Settings) -> Iterator[str]:
    """The keys in which two settings differ."""
    for name in Settings.model_fields:
        before, after = getattr(one, name), getattr(other, name)
        for key in type(before).model_fields:
            if getattr(before, key) != getattr(after, key):
                yield f"{name}.{key}"


def _packed(settings: Settings) -> list[CacheMode]:
    """The rungs that a calibration is about."""
    return [mode for mode in settings.cache.ladder if mode.page_format != "full"]
