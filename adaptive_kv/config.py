"""Fills the settings: flags > environment > systemd credentials > TOML > defaults.

`load_settings` is the only door; whatever is wrong comes out as one `ConfigError` that names
every key concerned. Environment variables are `ADAPTIVE_KV_SECTION__KEY`, credentials are files
called `section__key` in `$CREDENTIALS_DIRECTORY`.
"""

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    EnvSettingsSource,
    InitSettingsSource,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsError,
    TomlConfigSettingsSource,
)

from adaptive_kv.errors import ConfigError
from adaptive_kv.settings import (
    ENV_PREFIX,
    CacheSettings,
    LogSettings,
    MemorySettings,
    ModelSettings,
    MqttSettings,
    PolicySettings,
    Section,
    ServerSettings,
    Settings,
    TraceSettings,
    is_loopback,
    parse_size,
)

__all__ = [
    "DEFAULT_CONFIG_FILE",
    "CacheSettings",
    "ConfigError",
    "LogSettings",
    "MemorySettings",
    "ModelSettings",
    "MqttSettings",
    "PolicySettings",
    "ServerSettings",
    "Settings",
    "TraceSettings",
    "is_loopback",
    "load_settings",
    "parse_size",
]

DEFAULT_CONFIG_FILE = Path("/etc/adaptive-kv/adaptive-kv.toml")


def load_settings(
    config_file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    *,
    default_file: Path = DEFAULT_CONFIG_FILE,
) -> Settings:
    """Read every source once.

    `config_file` must exist when given; without one, `default_file` is read if it exists.
    `flags` are `{"server": {"port": 1}}` or `{"server.port": 1}`; None means not given.
    Raises `ConfigError` with one line per problem.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    problems = _stray_names(credentials)
    try:
        sources = (
            InitSettingsSource(Settings, _nested(flags or {})),
            EnvSettingsSource(Settings),
            *_credentials(credentials),
            *_file(config_file, default_file),
        )
        settings = Settings(_build_sources=(sources, {}))  # type: ignore[call-arg]
    except ValidationError as error:
        problems += [_problem(detail) for detail in error.errors() if _is_own_fault(detail)]
    except SettingsError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(["bad configuration:", *(f"  {line}" for line in problems)]))
    return settings


def _nested(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags by section and key, without those that were not given."""
    nested: dict[str, Any] = {}
    for name, value in flags.items():
        section, _, key = name.partition(".")
        given = {key: value} if key else value
        if isinstance(given, Mapping):
            kept = {inner: item for inner, item in given.items() if item is not None}
            nested.setdefault(section, {}).update(kept)
        elif given is not None:
            nested[section] = given
    return nested


def _credentials(directory: str | None) -> Iterator[PydanticBaseSettingsSource]:
    if directory is None:
        return
    try:
        source = NestedSecretsSettingsSource(
            InitSettingsSource(Settings, {}),
            secrets_dir=directory,
            secrets_dir_missing="error",
            secrets_prefix="",
        )
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the credentials in {directory}: {error}") from error
    # A unit can give a credential that need not be there a blank default, but not leave it out.
    source.env_vars = {name: value for name, value in source.env_vars.items() if value}
    yield source


def _file(given: Path | None, default: Path) -> Iterator[PydanticBaseSettingsSource]:
    file = given or default
    if given is None and not default.exists():
        return
    try:
        # The source would silently skip a file that is absent or no file.
        tomllib.loads(file.read_text("utf-8"))
        yield TomlConfigSettingsSource(Settings, file)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {file} is not valid TOML: {error}") from error


def _stray_names(credentials: str | None) -> list[str]:
    """Problems with names that look like ours but lead to no section."""
    variables = [name for name in os.environ if name.upper().startswith(ENV_PREFIX)]
    files = [file.name for file in Path(credentials).glob("[!.]*")] if credentials else []
    problems = [
        *(_stray("environment variable", name, ENV_PREFIX) for name in sorted(variables)),
        *(_stray("credential", name, "") for name in sorted(files)),
    ]
    return [problem for problem in problems if problem]


def _stray(what: str, name: str, prefix: str) -> str | None:
    """Why `name` leads nowhere; None if it is well or not ours.

    Names without `__` belong to others (Kubernetes sets some with our prefix), unless only one
    underscore is missing.
    """
    bare = name[len(prefix) :].lower()
    keys = [f"{section}__{key}" for section, key in _known_keys()]
    if bare.partition("__")[0] in Settings.model_fields:
        return None
    meant = {key.replace("__", "_"): key for key in keys}.get(bare)
    if meant is None and "__" not in bare:
        return None
    near = [meant] if meant else get_close_matches(bare, keys, n=1)
    return f"unknown {what} {name}" + _did_you_mean(
        prefix + (key.upper() if prefix else key) for key in near
    )


def _known_keys() -> Iterator[tuple[str, str]]:
    for section in Settings.model_fields:
        for key in _keys_of(section):
            yield section, key


def _keys_of(section: str) -> Iterable[str]:
    """Keys of a section, none if there is no such section."""
    field = Settings.model_fields.get(section)
    kind = field.annotation if field else None
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else ()


def _is_own_fault(error: ErrorDetails) -> bool:
    """Whether an error is more than the echo of another one in the same section."""
    return error["type"] != "default_factory_not_called"


def _problem(error: ErrorDetails) -> str:
    """One line for one validation error; values are never shown unless the check shows them."""
    where = error["loc"]
    key = ".".join(map(str, where))
    if error["type"] != "extra_forbidden":
        message = error["msg"].removeprefix("Value error, ")
        return message if message.startswith(f"{key}.") else f"{key}: {message}"
    siblings = Settings.model_fields if len(where) == 1 else _keys_of(str(where[0]))
    near = get_close_matches(str(where[-1]), siblings, n=1)
    return f"{key}: unknown key" + _did_you_mean(".".join([*map(str, where[:-1]), k]) for k in near)


def _did_you_mean(names: Iterable[str]) -> str:
    return "".join(f"; did you mean {name}?" for name in names)
