"""Decode steps that are captured at load: on this CPU, but for the capturing itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engines import EOS, KIB, check_empty, make_settings, make_stand, tokenizer
from models import make_module, prepared, prompt

from adaptive_kv.attention.batch import Row
from adaptive_kv.cache.geometry import Keep
from adaptive_kv.cache.slab import Budget
from adaptive_kv.engine import service
from adaptive_kv.engine.forward import Forward
from adaptive_kv.engine.graphs import Capture, DecodeGraphs, capture_decodes
from adaptive_kv.engine.loading import LoadedModel
from adaptive_kv.engine.model import prepare
from adaptive_kv.progress import untold

_HERE = Path(__file__).parent


def _captured(capture: Capture | None = None) -> DecodeGraphs:
    loaded = LoadedModel(
        name="tiny", model=prepared(), tokenizer=tokenizer(), eos_ids=frozenset({EOS})
    )
    return service._captured(make_settings(), loaded, untold, capture)


def test_run_by_the_interpreter_replayed_steps_are_those_that_run_layer_by_layer() -> None:
    """In a process of its own: Triton asks at import whether it interprets."""
    command = [sys.executable, "-m", "pytest", "-q", str(_HERE / "replayed.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, env=environment, cwd=_HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:]


def test_on_a_cpu_nobody_tries_and_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    graphs = _captured()
    assert not graphs
    assert graphs.why_none is None
    assert capsys.readouterr().out == ""


def test_a_model_that_no_kernel_serves_runs_layer_by_layer_and_the_log_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    graphs = _captured(lambda run: run)
    assert not graphs
    assert graphs.why_none is not None
    assert "no kernel reads its float32 heads of 16" in graphs.why_none
    told = capsys.readouterr().out
    assert told.count("decode_not_captured") == 1
    assert graphs.why_none in told


def test_what_was_captured_counts_against_the_budget_as_weights_do() -> None:
    none = make_stand(cache={"slab": 32 * KIB})
    some = make_stand(cache={"slab": 32 * KIB}, graphs=DecodeGraphs(none.store, num_bytes=5 * KIB))
    kept_bytes = [stand.engine.budget.kept_bytes for stand in (none, some)]
    assert kept_bytes[1] - kept_bytes[0] == 5 * KIB
    some.post(prompt(20), 4)
    some.run()
    check_empty(some)


@pytest.mark.gpu
def test_on_a_gpu_real_graphs_give_what_steps_give_layer_by_layer() -> None:
    """Long after they were captured, too."""
    module = make_module("llama", torch.bfloat16, head_dim=64).to("cuda")  # type: ignore[arg-type]
    model, budget = prepare(module), Budget()
    graphs = capture_decodes(
        model, keep=Keep(16, 32), slab_bytes=32 * KIB, budget=budget, max_rows=5
    )
    assert graphs.why_none is None
    assert graphs.num_bytes > 0
    assert budget.used_bytes == 0
    stand = make_stand(model, graphs=graphs)
    for seed in range(5):
        stand.post(prompt(100 + seed, seed=seed), 40)
    for mode in ("full", "int8", "int4"):
        stand.pin(mode)
        stand.step(5)
    rows = [Row(s.cache, s.cache.num_stored, 1) for s in stand.scheduler.running]
    ids = [s.tokens[-1] for s in stand.scheduler.running]
    positions = [row.position for row in rows]
    for row in rows:
        row.cache.reserve(1)
    wanted = Forward(model, stand.store)(rows, ids, positions, range(len(rows))).float()
    found = graphs.forward(rows, ids)
    assert found is not None
    assert (found.float() - wanted).abs().max() <= 0.1 * wanted.abs().max()
