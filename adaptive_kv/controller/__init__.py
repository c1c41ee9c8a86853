"""Asks the policy, then the guard. Pure: no tensor, no I/O, and no clock but the reading's."""

from adaptive_kv.controller.controller import Controller, Orders
from adaptive_kv.controller.rungs import Rungs

__all__ = ["Controller", "Orders", "Rungs"]
