"""Replays: what another policy would have made of a recorded trace. No tensor library."""

from adaptive_kv.replay.figures import Figures
from adaptive_kv.replay.replaying import Replayed, replay

__all__ = ["Figures", "Replayed", "replay"]
