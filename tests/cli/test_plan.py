"""`adaptive-kv plan` knows what a model will weigh before it is loaded."""

import json
from pathlib import Path

import pytest
from cli.conftest import Run
from models import make_module
from transformers import LlamaConfig

from adaptive_kv.config import ModelSettings
from adaptive_kv.engine.families import FAMILIES
from adaptive_kv.engine.loading import load_model
from adaptive_kv.engine.model import prepare
from adaptive_kv.engine.planning import outline

LLAMA_8B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
    max_position_embeddings=131072,
    architectures=["LlamaForCausalLM"],
)


def test_an_outline_is_what_loading_finds() -> None:
    """Weights, groups, widths and context of the embedded model, without its weights."""
    _, outlined = outline(ModelSettings())
    loaded = load_model(ModelSettings()).model
    assert outlined.weights_bytes == loaded.weights_bytes
    assert outlined.groups == loaded.groups
    assert outlined.widths == loaded.widths
    assert outlined.max_context == loaded.max_context


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_can_be_outlined(family: str, tmp_path: Path) -> None:
    module = make_module(family)
    module.config.save_pretrained(tmp_path)
    _, outlined = outline(ModelSettings(path=str(tmp_path), dtype="float32"))
    assert outlined.groups == prepare(module).groups


def test_a_large_model_is_planned_from_its_config_alone(adaptive_kv: Run, tmp_path: Path) -> None:
    """128 KiB a token for an 8B Llama in 16 bits; packed modes let more sequences in."""
    LLAMA_8B.save_pretrained(tmp_path)
    flags = ["--dtype", "bfloat16", "--device-memory", "40GiB", "--context", "16384", "--json"]
    ran = adaptive_kv("plan", str(tmp_path), *flags)
    assert ran.returncode == 0, ran.stderr
    planned = json.loads(ran.stdout)
    rows = {row["mode"]: row for row in planned["modes"]}
    assert planned["weights_bytes"] == pytest.approx(16e9, rel=0.01)
    assert rows["full"]["cache_bytes"] == 16384 * 128 * 1024
    assert rows["int8"]["bytes_per_token"] == pytest.approx(70 * 1024, rel=0.01)
    numbers = [rows[mode]["num_sequences"] for mode in ("full", "int8", "int4")]
    assert numbers == sorted(numbers)
    assert numbers[0] == (40 * 2**30 - planned["weights_bytes"]) // (16384 * 128 * 1024)
    assert rows["full"]["tokens_per_s"] < rows["int4"]["tokens_per_s"]
    assert rows["disabled"]["tokens_per_s"] is None


def test_the_table_has_a_row_for_every_mode(adaptive_kv: Run) -> None:
    ran = adaptive_kv("plan", "--context", "1024", "--sequences", "4")
    assert ran.returncode == 0, ran.stderr
    for mode in ("full", "int8", "int4", "window:1024+int4", "disabled"):
        assert mode in ran.stdout


@pytest.mark.parametrize("wrong", [["/nowhere"], ["--device-memory", "a lot"]])
def test_what_cannot_be_planned_is_bad_configuration(adaptive_kv: Run, wrong: list[str]) -> None:
    ran = adaptive_kv("plan", *wrong)
    assert ran.returncode == 78
    assert ran.stderr.startswith("adaptive-kv: ")
