"""Traces: what a service saw and decided, recorded while it works and read back elsewhere.

Neither prompts nor token ids are in a trace, nor the names of requests. No tensor library.
"""

from adaptive_kv.trace.header import Header
from adaptive_kv.trace.moment import Moment, Seen
from adaptive_kv.trace.reader import Trace, read_trace
from adaptive_kv.trace.recorder import Recorder

__all__ = ["Header", "Moment", "Recorder", "Seen", "Trace", "read_trace"]
