"""The kernels for GPUs give what plain torch gives, and are made for every GPU that we know."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compiled import ARCHITECTURES, compile_all

from adaptive_kv.cache.formats import triton_here
from adaptive_kv.cache.geometry import LayerGroup

_HERE = Path(__file__).parent
_SHARED_BYTES = 99 * 1024
"""What a program may have of fast memory on the smallest of them."""


def test_run_by_the_interpreter_they_give_what_plain_torch_gives() -> None:
    """In a process of its own: Triton asks at import whether it interprets."""
    command = [sys.executable, "-m", "pytest", "-q", str(_HERE / "interpreted.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, env=environment, cwd=_HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_they_compile_for_every_gpu_without_spilling_registers(architecture: int) -> None:
    """And read 16 bytes at a time."""
    found = compile_all(architecture)
    assert {made.name for made in found} >= {"decode", "chunks", "full to int4"}
    for made in found:
        assert (made.name, made.spilled_bytes) == (made.name, 0)
        assert made.shared_bytes <= _SHARED_BYTES
    assert all(made.is_wide for made in found if made.name != "merge")


def test_where_kernels_cannot_start_plain_torch_is_used_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    group = LayerGroup((0,), 1, 64, 64, torch.bfloat16)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(sys.modules, "triton.runtime.driver", None)
    triton_here._can_start.cache_clear()
    found = [triton_here.can_handle(group, torch.device("cuda"), 128) for _ in range(3)]
    triton_here._can_start.cache_clear()
    assert found == [False] * 3
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("kernels for the GPU cannot start")


def test_the_cpu_never_asks_for_triton() -> None:
    """Unless it is told to interpret."""
    group = LayerGroup((0,), 1, 64, 64, torch.bfloat16)
    assert not triton_here.can_handle(group, torch.device("cpu"), 128)
