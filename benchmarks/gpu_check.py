"""Everything that only a GPU can tell, in one run of less than nine minutes: `make gpu-check`.

Are kernels right, how often does a step wait for the device, how fast are decode steps, prefill and
switches, are kernels started as they should be on this GPU, and does anything fail while a
neighbour takes the memory? Needs a CUDA device, torch and transformers; no network, and nothing
need be installed:

    PYTHONPATH=. python benchmarks/gpu_check.py --output gpu.json
    PYTHONPATH=. python benchmarks/gpu_check.py --dry      on a CPU, all that it can do, in little

A part whose packages are missing, or that breaks, says so and is left out. Exit status 1 where one
was, or anything was found wrong.
"""

import argparse
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

_LONGEST_S = 500.0
_SQUEEZE_S = 130.0
"""Kept for the last part."""
_TUNE_S = 120.0
"""Kept for what comes before it."""
_KERNELS = ("torch", "transformers", "triton", "numpy")
_ENGINE = (
    *(*_KERNELS, "structlog", "pydantic", "pydantic_settings", "pynvml", "tokenizers"),
    *("safetensors", "tqdm"),
)


def main(arguments: Sequence[str]) -> int:
    """Run every part, write the JSON after each, and say what is wrong."""
    options = _parse(arguments)
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before anybody imports Triton
    report: dict[str, Any] = {"is_dry": options.dry, "missing": _missing(_ENGINE), "took_s": {}}
    started_s = time.monotonic()

    def left_s() -> float:
        return _LONGEST_S - _SQUEEZE_S - (time.monotonic() - started_s)

    for name, needed, part in _PARTS:
        missing = _missing(needed)
        if missing:
            report[name] = {"left_out": f"not installed: {', '.join(missing)}"}
        else:
            _say(f"{name} ...")
            report[name] = _tried(partial(part, options.dry, report, left_s))
        report["took_s"][name] = time.monotonic() - started_s - sum(report["took_s"].values())
        options.output.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    faults = _faults(report)
    for fault in faults:
        _say(f"wrong: {fault}")
    _say(f"{len(faults)} things wrong; {options.output}")
    return 1 if faults else 0


def _tried(part: Callable[[], Any]) -> Any:
    """What a part found, or how it broke; what it held is let go."""
    import gc

    import torch

    try:
        return part()
    except Exception as error:  # noqa: BLE001 - the other parts go on
        traceback.print_exc()
        return {"left_out": f"{type(error).__name__}: {error}"[:500]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="on the CPU, in little")
    parser.add_argument("--output", type=Path, default=Path("gpu-check.json"))
    return parser.parse_args(arguments)


def _missing(packages: Sequence[str]) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _say(line: str) -> None:
    print(line, flush=True)


def _place(is_dry: bool) -> Any:
    import torch
    from gpu_pages import Place

    if not is_dry and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; --dry goes without one")
    return Place(torch.device("cpu" if is_dry else "cuda"), is_dry)


def _machine(is_dry: bool, *_: Any) -> dict[str, Any]:
    import platform

    import torch
    import transformers
    import triton
    from gpu_kernels import copy_bandwidth

    place = _place(is_dry)
    device = "cpu" if is_dry else torch.cuda.get_device_name()
    versions = {module.__name__: module.__version__ for module in (torch, transformers, triton)}
    return {
        "device": device,
        "python": platform.python_version(),
        **versions,
        "copy_bytes_per_s": copy_bandwidth(place),
    }


def _kernels(is_dry: bool, report: dict[str, Any], _: Callable[[], float]) -> dict[str, Any]:
    import gpu_kernels

    place = _place(is_dry)
    bandwidth = _bandwidth(report)
    return {
        "attention": gpu_kernels.check_attention(place),
        "switches": gpu_kernels.check_switches(place),
        "switch_speed": gpu_kernels.measure_switches(place, bandwidth),
        "prefill": gpu_kernels.measure_prefill(place),
    }


def _decodes(is_dry: bool, report: dict[str, Any], left_s: Callable[[], float]) -> list[Any]:
    from gpu_decode import measure_decodes

    return measure_decodes(_place(is_dry), _bandwidth(report), lambda: left_s() - _TUNE_S)


def _waits(is_dry: bool, *_: Any) -> list[Any]:
    from gpu_waits import check_waits

    return check_waits(_place(is_dry))


def _tuning(is_dry: bool, _: dict[str, Any], left_s: Callable[[], float]) -> dict[str, Any]:
    from gpu_tune import tune

    found = tune(_place(is_dry), left_s)
    if found["line"] is not None:
        _say(f"for adaptive_kv/attention/gpu_tuning.py: {found['line']}")
    return found


def _bandwidth(report: dict[str, Any]) -> float:
    return float(report["machine"].get("copy_bytes_per_s", "nan"))


def _squeeze(is_dry: bool, *_: Any) -> dict[str, Any]:
    from gpu_squeeze import squeeze

    return squeeze(_place(is_dry))


_PARTS: tuple[tuple[str, tuple[str, ...], Callable[..., Any]], ...] = (
    ("machine", _KERNELS, _machine),
    ("kernels", _KERNELS, _kernels),
    ("waits", _KERNELS, _waits),
    ("decode", _KERNELS, _decodes),
    ("tuning", _KERNELS, _tuning),
    ("squeeze", _ENGINE, _squeeze),
)


def _faults(report: dict[str, Any]) -> list[str]:
    """What is not as it should be, in words; speeds are for people to judge."""
    faults = [
        f"{name}: {found['left_out']}"
        for name, found in report.items()
        if isinstance(found, dict) and "left_out" in found
    ]
    kernels = report["kernels"]
    for part in ("attention", "switches"):
        faults += [f"{part}: {it['case']}" for it in kernels.get(part, ()) if not it["is_right"]]
    waits = report["waits"]
    if isinstance(waits, list):
        faults += [f"waits: {it['case']}: {it['waits']}" for it in waits if not it["is_right"]]
    squeezed = report["squeeze"]
    if not squeezed.get("is_right", True):
        faults.append(f"squeeze: {squeezed['failed']} failed, {squeezed['completed']} completed")
    return faults


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
