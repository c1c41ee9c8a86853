"""Finds policies: installed ones, one in a file, one in the drop-in folder.

A policy is a class, made once with `policy.options` as keyword arguments and then called, or
anything else that can be called, which takes no options.
"""

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from adaptive_kv.errors import PolicyError
from adaptive_kv.policy import Policy

GROUP = "adaptive_kv.policies"
DROP_IN_FOLDER = Path("/etc/adaptive-kv/policies")

_OURS = "adaptive_kv_policies."
_FILE = re.compile(r"(?P<path>.+\.py)(?::(?P<attribute>[A-Za-z_][A-Za-z0-9_]*))?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class FoundPolicy:
    """A policy that can be named; `origin` is where its code is: `module:Name` or a file."""

    name: str
    origin: str


def load_policy(
    name_or_file: str, options: Mapping[str, Any], *, folder: Path = DROP_IN_FOLDER
) -> tuple[Policy, str]:
    """The policy, ready to be called, and the name to show for it.

    `name_or_file` is an installed policy's name, that of a file in `folder` without its `.py`,
    or `path/to/file.py:Name`. Where a file's attribute is not named it is `policy`, or else the
    file's only public class or function. Raises `PolicyError` that says what is wrong.
    """
    file = _FILE.fullmatch(name_or_file)
    if file:
        made_of = _from_file(name_or_file, Path(file["path"]), file["attribute"])
        shown = Path(file["path"]).name + (f":{file['attribute']}" if file["attribute"] else "")
    else:
        made_of, shown = _by_name(name_or_file, folder), name_or_file
    return _made(name_or_file, made_of, options), shown


def list_policies(*, folder: Path = DROP_IN_FOLDER) -> tuple[FoundPolicy, ...]:
    """Every policy that has a name, sorted by it; an installed one hides a file of its name."""
    found = {file.stem: FoundPolicy(file.stem, str(file)) for file in folder.glob("[!_.]*.py")}
    found |= {entry.name: FoundPolicy(entry.name, entry.value) for entry in _installed()}
    return tuple(found[name] for name in sorted(found))


def policy_names(*, folder: Path = DROP_IN_FOLDER) -> list[str]:
    """The names of `list_policies`."""
    return [found.name for found in list_policies(folder=folder)]


def is_shipped(name_or_file: str, options: Mapping[str, Any]) -> bool:
    """Whether all the code is ours, that of the policy which an option `policy` names included."""
    entry = _entry(name_or_file)
    wrapped = options.get("policy")
    return (
        entry is not None
        and entry.value.startswith(_OURS)
        and (wrapped is None or (isinstance(wrapped, str) and is_shipped(wrapped, {})))
    )


def _installed() -> list[EntryPoint]:
    return list(entry_points(group=GROUP))


def _entry(name: str) -> EntryPoint | None:
    return next((entry for entry in _installed() if entry.name == name), None)


def _by_name(name: str, folder: Path) -> object:
    entry = _entry(name)
    if entry is not None:
        return _imported(name, entry)
    file = folder / f"{name}.py"
    if _NAME.fullmatch(name) and file.is_file():
        return _from_file(name, file, None)
    known = policy_names(folder=folder)
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise PolicyError(name, f"no such policy; {hint} A file is named as path/to/file.py:Name")


def _imported(name: str, entry: EntryPoint) -> object:
    try:
        return entry.load()
    except Exception as error:
        raise PolicyError(name, f"importing {entry.value} failed: {_told(error)}") from error


def _from_file(name: str, path: Path, attribute: str | None) -> object:
    module = _run(name, path)
    attribute = attribute or _only_policy(name, path, module)
    if not hasattr(module, attribute):
        raise PolicyError(name, f"{path} has no {attribute}")
    return getattr(module, attribute)


def _run(name: str, path: Path) -> ModuleType:
    """The file as a module, under a name that hides nobody else's."""
    if not path.is_file():
        raise PolicyError(name, f"there is no file {path}")
    spec = spec_from_file_location(f"_adaptive_kv_policy_{path.stem}", path)
    assert spec is not None, "a name that ends in .py has a loader"
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise PolicyError(name, f"running {path} failed: {_told(error)}") from error
    return module


def _only_policy(name: str, path: Path, module: ModuleType) -> str:
    """`policy`, or the only public class or function that the file itself defines."""
    own = [
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]
    if hasattr(module, "policy") or len(own) == 1:
        return "policy" if hasattr(module, "policy") else own[0]
    which = f"defines {', '.join(own)}" if own else "defines no class or function"
    raise PolicyError(name, f"{path} {which}; say which is the policy: {path}:NAME")


def _made(name: str, made_of: object, options: Mapping[str, Any]) -> Policy:
    policy = made_of
    if isinstance(made_of, type):
        try:
            policy = made_of(**options)
        except Exception as error:
            raise PolicyError(name, f"making it with its options failed: {_told(error)}") from error
    elif options:
        raise PolicyError(name, f"it takes no options, but is given {', '.join(options)}")
    if not callable(policy):
        raise PolicyError(name, f"a {type(policy).__name__} cannot be called with a reading")
    return cast("Policy", policy)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
