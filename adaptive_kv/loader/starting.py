"""Gets the policy of a running service ready, where it can do no harm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptive_kv.loader.finding import DROP_IN_FOLDER, is_shipped, load_policy
from adaptive_kv.loader.remote import RemotePolicy
from adaptive_kv.policy import Policy


def start_policy(
    name_or_file: str,
    options: Mapping[str, Any],
    *,
    deadline_s: float,
    folder: Path = DROP_IN_FOLDER,
) -> tuple[Policy | RemotePolicy, str]:
    """The policy and the name to show for it: as `load_policy`, but fit for a running service.

    One that comes with adaptive-kv runs in this process, any other in a child process; close
    that when it is no longer wanted. Raises `PolicyError` that says what is wrong.
    """
    if is_shipped(name_or_file, options):
        return load_policy(name_or_file, options, folder=folder)
    remote = RemotePolicy(name_or_file, options, folder=folder, deadline_s=deadline_s)
    return remote, remote.start()
