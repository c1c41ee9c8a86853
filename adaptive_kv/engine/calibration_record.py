"""Calibrations kept on disk: one small JSON file for every model as it is served.

A file's name is a hash of all that decides the result. Weights are sampled: blocks spread evenly
over every file, its header first. So a model of any size is known within a second or so, and a
small one is read whole. A record that cannot be read is no record.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import structlog
from pydantic import TypeAdapter, ValidationError

from adaptive_kv import __version__
from adaptive_kv.engine.losses import Calibration

_SAMPLE_BYTES, _MAX_SAMPLES = 64 * 2**10, 256
"""A file of up to 16 MiB is read whole."""
_FILES = ("config.json", "tokenizer*", "*.safetensors")
_log = structlog.get_logger(__name__)


def records_folder() -> Path | None:
    """Where records are kept; None where there is no place for them.

    `$CACHE_DIRECTORY` is systemd's (the first, where there are several).
    """
    if given := os.environ.get("CACHE_DIRECTORY"):
        return Path(given.split(":", 1)[0]) / "calibration"
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "adaptive-kv" / "calibration"
    try:
        return Path.home() / ".cache" / "adaptive-kv" / "calibration"
    except RuntimeError:
        return None


def fingerprint(folder: Path, **served_as: object) -> str:
    """Names the files of a model and how it is served (device, dtype, text, ...), 32 hex digits.

    Changes with this package's version: what a format loses may change with its code.
    Raises `OSError`.
    """
    found = hashlib.blake2b(digest_size=16)
    found.update(json.dumps({"version": __version__, **served_as}, sort_keys=True).encode())
    for file in sorted({file for pattern in _FILES for file in folder.glob(pattern)}):
        found.update(f"\n{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as opened:
            for sample in _samples(opened, file.stat().st_size):
                found.update(sample)
    return found.hexdigest()


def load(key: str) -> Calibration | None:
    """What was kept under this fingerprint; None if nothing was, or nothing that can be read."""
    file = _file(key)
    if file is None or not file.exists():
        return None
    try:
        return TypeAdapter(Calibration).validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        _log.warning("calibration_unreadable", file=str(file), error=_in_one_line(error))
        return None


def save(key: str, calibration: Calibration) -> None:
    """Keep a calibration; one that cannot be kept is logged and measured again next time."""
    file = _file(key)
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _replace(file, json.dumps(asdict(calibration), indent=2) + "\n")
    except OSError as error:
        _log.warning("calibration_not_kept", file=str(file), error=_in_one_line(error))


def _file(key: str) -> Path | None:
    folder = records_folder()
    return None if folder is None else folder / f"{key}.json"


def _replace(file: Path, text: str) -> None:
    """Whoever reads sees either what was there or all of `text`."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".")
    made = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text)
        made.replace(file)
    finally:
        made.unlink(missing_ok=True)


def _samples(file: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    """The file's beginning, where safetensors have their header, its end, and blocks between."""
    num_samples = min(_MAX_SAMPLES, -(-num_bytes // _SAMPLE_BYTES))
    last = max(0, num_bytes - _SAMPLE_BYTES)
    for number in range(num_samples):
        file.seek(last * number // max(1, num_samples - 1))
        yield file.read(_SAMPLE_BYTES)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
