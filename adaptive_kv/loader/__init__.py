"""Finds policies and gets them ready: ours in this process, anyone else's in a child process."""

from adaptive_kv.loader.finding import (
    DROP_IN_FOLDER,
    GROUP,
    FoundPolicy,
    list_policies,
    load_policy,
    policy_names,
)
from adaptive_kv.loader.remote import RemotePolicy
from adaptive_kv.loader.starting import start_policy

__all__ = [
    "DROP_IN_FOLDER",
    "GROUP",
    "FoundPolicy",
    "RemotePolicy",
    "list_policies",
    "load_policy",
    "policy_names",
    "start_policy",
]
