"""Servers that are measured over HTTP: how each is started, or why it is not."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

_TRANSFORMERS = "from transformers.cli.transformers import main; main()"
_START_S = 240.0
_POOL_TOKENS = 10240
_BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that may be started, and what it is asked besides the prompt.

    `variants` are ways to ask the same server, by the name they are shown under.
    """

    command: Sequence[str]
    ready_path: str
    variants: Mapping[str, Mapping[str, Any]]
    variables: Mapping[str, str] = field(default_factory=dict)
    is_served_as: str = "m"


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    peer: Peer
    url: str
    pid: int

    def cpu_s(self) -> float:
        """CPU time of the server and of all that it has started."""
        return sum(_cpu_s(pid) for pid in _tree(self.pid))


def peers(model: Path, dtype: str, modes: Sequence[str], gguf: Path | None) -> dict[str, Peer]:
    """All that are installed here; `absent` tells about the others."""
    found = {"ours": _ours(model, dtype, modes)}
    if "transformers" not in absent(dtype, gguf):
        found |= _transformers(model, dtype)
    if "vLLM" not in absent(dtype, gguf):
        found["vLLM"] = _vllm(model, dtype)
    if gguf and "llama-server" not in absent(dtype, gguf):
        found |= _llama(gguf)
    return found


def absent(dtype: str, gguf: Path | None) -> dict[str, str]:
    """Why the others are not measured."""
    told = {}
    if not (importlib.util.find_spec("fastapi") and importlib.util.find_spec("openai")):
        told["transformers"] = "`transformers[serving]` is not installed"
    if not importlib.util.find_spec("vllm"):
        told["vLLM"] = "not installed"
    elif dtype != "bfloat16":
        told["vLLM"] = "measured in bfloat16 alone"
    if not shutil.which("llama-server"):
        told["llama-server"] = "not on the PATH"
    elif gguf is None:
        told["llama-server"] = "no weights in its format; make them and give --gguf"
    elif dtype != "float32":
        told["llama-server"] = "measured beside float32 alone"
    return told


def _ours(model: Path, dtype: str, modes: Sequence[str]) -> Peer:
    command = [sys.executable, "-m", "adaptive_kv", "serve", "--model", str(model)]
    command += ["--device", "cpu"]
    asked: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
    return Peer(
        command=[*command, "--dtype", dtype, "--port", "{port}"],
        ready_path="/readyz",
        variants={f"ours, {mode}": {**asked, "adaptive_kv": {"allow": [mode]}} for mode in modes},
        # Random weights say nothing about what a format loses.
        variables={"ADAPTIVE_KV_CACHE__MAX_KL": "1e9"},
        is_served_as=model.name,
    )


def _transformers(model: Path, dtype: str) -> dict[str, Peer]:
    plain = [sys.executable, "-c", _TRANSFORMERS, "serve", str(model), "--device", "cpu"]
    plain += ["--dtype", dtype, "--host", "127.0.0.1", "--port", "{port}"]
    batching = ["--continuous-batching", "--attn-implementation", "sdpa"]
    batching += ["--cb-block-size", str(_BLOCK_TOKENS), "--cb-max-batch-tokens", "512"]
    batching += ["--cb-num-blocks", str(_POOL_TOKENS // _BLOCK_TOKENS)]
    names = {"transformers serve": plain, "transformers serve, batching": [*plain, *batching]}
    return {
        name: Peer(command, "/health", {name: {}}, is_served_as=str(model))
        for name, command in names.items()
    }


def _vllm(model: Path, dtype: str) -> Peer:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--dtype", dtype, "--host", "127.0.0.1", "--port", "{port}", "--enforce-eager"]
    return Peer(
        command=[*command, "--served-model-name", "m", "--max-model-len", "8192"],
        ready_path="/health",
        variants={"vLLM": {"temperature": 0, "ignore_eos": True}},
        variables={
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        },
    )


def _llama(gguf: Path) -> dict[str, Peer]:
    plain = ["llama-server", "-m", str(gguf), "--alias", "m", "--host", "127.0.0.1"]
    plain += ["--port", "{port}", "-c", "16384", "-np", "8", "-kvu", "-t", "{threads}"]
    plain += ["--offline", "--no-ui", "-fa", "on", "-cram", "0"]
    asked = {"temperature": 0, "ignore_eos": True}
    return {
        f"llama-server, {kind}": Peer(
            [*plain, "-ctk", kind, "-ctv", kind], "/health", {f"llama-server, {kind}": asked}
        )
        for kind in ("f16", "q8_0", "q4_0")
    }


@contextmanager
def started(peer: Peer, folder: Path, threads: int) -> Iterator[Running]:
    """The server once it can take a request. Raises `RuntimeError` where that does not happen."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [part.format(port=port, threads=threads) for part in peer.command]
    variables = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", **peer.variables}
    log_file = folder / f"{port}.log"
    with (
        log_file.open("wb") as log,
        subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env={**os.environ, **variables}
        ) as process,
    ):
        try:
            running = Running(peer, f"http://127.0.0.1:{port}", process.pid)
            _wait(running.url + peer.ready_path, process, log_file)
            yield running
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(url: str, process: subprocess.Popen[bytes], log_file: Path) -> None:
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s and process.poll() is None:
        try:
            if httpx.get(url, timeout=10).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    lines = log_file.read_text("utf-8", errors="replace").strip().splitlines()
    raise RuntimeError(f"it did not start: {lines[-1] if lines else 'no word'}")


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text("utf-8").split():
            yield from _tree(int(child))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
