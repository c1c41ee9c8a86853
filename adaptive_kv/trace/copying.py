"""Writes a trace anew, as one file."""

import gzip
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from adaptive_kv.trace.header import Header
from adaptive_kv.trace.lines import Encoder
from adaptive_kv.trace.moment import Moment


def write_trace(file: Path, header: Header, moments: Iterable[Moment]) -> None:
    """One file that tells nothing of when it was recorded; the same bytes for the same moments."""
    encoder = Encoder()
    with file.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(replace(header, began_s=0.0).to_json().encode() + b"\n")
        for moment in moments:
            packed.write(encoder.line(moment).encode() + b"\n")
