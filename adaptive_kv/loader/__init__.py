"""Finds policies and gets them ready: ours in this process, anyone else's in a child process."""

from adaptive_kv.loader.finding import (
    DROP_IN_FOLDER,
    GROUP,
    FoundPolicy,
    list_policies,
    load_policy,
    policy_names,
)

__all__ = [
    "DROP_IN_FOLDER",
    "GROUP",
    "FoundPolicy",
    "list_policies",
    "load_policy",
    "policy_names",
]
