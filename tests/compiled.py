"""Kernels compiled for GPUs that are not there, and what the assembler says of them."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adaptive_kv.attention import gpu, gpu_kernel
from adaptive_kv.attention.gpu_lists import Sent
from adaptive_kv.attention.gpu_tuning import DEFAULT, TABLE
from adaptive_kv.attention.interface import LayerCall
from adaptive_kv.cache.formats import gpu_kernel as format_kernel
from adaptive_kv.cache.formats.gpu import convert_options
from adaptive_kv.cache.geometry import LayerGroup

ARCHITECTURES = (80, 86, 87, 89, 90, 100, 120)
"""Ampere, Orin, Ada, Hopper and both Blackwells."""

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_GROUP = LayerGroup((0,), 8, 128, 128, torch.bfloat16)
_CALL = LayerCall(layer=0, scaling=0.1)
_ALL = Sent(torch.empty(0), has_int8=True, has_int4=True, num_blocks=1)
_FULL = Sent(torch.empty(0), has_int8=False, has_int4=False, num_blocks=1)
_NUM_HEADS = 32
_POINTERS = {
    **dict.fromkeys(("queries", "keys", "values", "out"), "*bf16"),
    **dict.fromkeys(("sums", "tops"), "*fp32"),
    **dict.fromkeys(("rows", "sources", "targets", "lines"), "*i64"),
}
_FLOATS = ("scaling", "softcap")
_BY_TURNS = {80: ((16, 8), (8, 4)), 90: ((4, 16),), 100: ((8, 16),), 120: ((4, 16), (4, 8))}
_COMPILER_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
_ALIGNED = re.compile(r"(query|key|value)_(head|token)")


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel for one architecture."""

    name: str
    spilled_bytes: int
    shared_bytes: int
    is_wide: bool
    """Whether it reads 16 bytes at a time."""


def compile_all(architecture: int) -> list[Compiled]:
    """Every kernel as the host starts it, for heads of 128 in bfloat16; conversions by turns."""
    return [
        _compile(name, kernel, options, architecture)
        for name, kernel, options in _kernels(architecture)
    ]


def _kernels(architecture: int) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    tuning = TABLE.get((architecture // 10, architecture % 10), DEFAULT)
    yield "decode", gpu_kernel.attend, gpu.decode_options(_GROUP, _NUM_HEADS, _ALL, _CALL, tuning)
    yield "chunks", gpu_kernel.attend, gpu.chunk_options(_GROUP, _NUM_HEADS, _ALL, _CALL, tuning)
    yield "full to int4", format_kernel.convert, convert_options(_GROUP, 16, 4)
    if architecture == 80:
        merged = {"value_dim": 128, "padded": 128, "max_splits": 64, "has_sinks": False}
        yield "merge", gpu_kernel.merge, {**merged, "sink_logits": None}
        full = gpu.decode_options(_GROUP, _NUM_HEADS, _FULL, _CALL, tuning)
        yield "decode of full pages", gpu_kernel.attend, full
    for source, target in _BY_TURNS.get(architecture, ()):
        options = convert_options(_GROUP, source, target)
        yield f"{source} to {target} bits", format_kernel.convert, options


def _compile(name: str, kernel: Any, options: dict[str, Any], architecture: int) -> Compiled:
    constants = {key: value for key, value in options.items() if key not in _COMPILER_OPTIONS}
    if kernel is gpu_kernel.attend:
        constants["sink_logits"] = None
        if not options["is_decode"]:
            constants |= {"sums": None, "tops": None}
    names = kernel.arg_names
    signature = {key: "constexpr" if key in constants else _type(key) for key in names}
    aligned = [key in _POINTERS or bool(_ALIGNED.fullmatch(key)) for key in names]
    attributes = {
        (at,): [["tt.divisibility", 16]]
        for at, key in enumerate(names)
        if aligned[at] and key not in constants
    }
    made = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={key: options[key] for key in _COMPILER_OPTIONS if key in options},
    )
    text = made.asm["ptx"]
    wide = re.search(r"ld\.global\S*\.v4\.b32|cp\.async\.cg\.shared\.global .*, 0x10,", text)
    return Compiled(name, _spilled_bytes(text), made.metadata.shared, wide is not None)


def _type(name: str) -> str:
    return _POINTERS.get(name, "fp32" if name in _FLOATS else "i32")


def _spilled_bytes(text: str) -> int:
    """What Triton's own assembler says of the registers of a kernel."""
    target = re.search(r"\.target (\w+)", text)
    assert target is not None
    tool = "ptxas-blackwell" if target[1] >= "sm_100" and len(target[1]) > 5 else "ptxas"
    command = [str(_TOOLS / tool), "-v", f"--gpu-name={target[1]}", "-", "-o", "/dev/null"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    assert spilled, done.stderr
    return sum(map(int, spilled))
