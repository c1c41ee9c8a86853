"""Models that cannot be served are refused, and the words say why."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engines import make_settings, tokenizer
from models import make_module, prepared
from safetensors.torch import load_file, save_file

from adaptive_kv.config import ModelSettings
from adaptive_kv.engine.loading import LoadedModel, embedded_model, load_model
from adaptive_kv.engine.service import build_engine
from adaptive_kv.errors import ModelError
from adaptive_kv.events import EventLog

_WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete tiny model, named `tiny`."""
    path = tmp_path / "tiny"
    make_module(eos_token_id=[2, 7]).save_pretrained(path)
    tokenizer().save_pretrained(str(path))
    return path


def _load(path: Path | str, **changes: str) -> LoadedModel:
    return load_model(ModelSettings(path=str(path), device="cpu").model_copy(update=changes))


def _refusal(path: Path | str, **changes: str) -> str:
    with pytest.raises(ModelError) as caught:
        _load(path, **changes)
    return str(caught.value)


def test_a_folder_is_served_under_its_name(folder: Path) -> None:
    loaded = _load(folder)
    assert loaded.name == "tiny"
    assert loaded.model.weights_bytes == prepared().weights_bytes
    assert loaded.model.module.dtype == torch.float32


def test_every_end_of_sequence_of_model_and_tokenizer_counts(folder: Path) -> None:
    assert _load(folder).eos_ids == {2, 7, tokenizer().eos_token_id}


def test_without_a_path_the_embedded_model_is_served() -> None:
    loaded = load_model(ModelSettings(device="cpu"))
    assert loaded.name == "demo"
    assert loaded.eos_ids
    assert embedded_model().is_dir()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    refusal = _refusal(tmp_path / "missing")
    assert str(tmp_path / "missing") in refusal
    assert "no such folder" in refusal


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "config.json" in _refusal(tmp_path)


def _truncate(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-1000])


def _flip_a_bit_of_the_header(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[9] ^= 0x40
    weights.write_bytes(bytes(content))


def _claim_a_huge_header(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[6] ^= 0x80
    weights.write_bytes(bytes(content))


def _drop_a_tensor(weights: Path) -> None:
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, {"format": "pt"})


def _misshape_a_tensor(weights: Path) -> None:
    tensors = load_file(weights)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:50].clone()
    save_file(tensors, weights, {"format": "pt"})


def _break_a_number(weights: Path) -> None:
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"][3] = torch.nan
    save_file(tensors, weights, {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (Path.unlink, _WEIGHTS),
        (_truncate, "damaged or incomplete"),
        (_flip_a_bit_of_the_header, "damaged or incomplete"),
        (_claim_a_huge_header, "damaged or incomplete"),
        (_drop_a_tensor, "up_proj"),
        (_misshape_a_tensor, "lm_head.weight"),
        (_break_a_number, "differ|nan"),
    ],
)
def test_weights_that_are_not_whole_are_refused(
    folder: Path, spoil: Callable[[Path], None], word: str
) -> None:
    spoil(folder / _WEIGHTS)
    with pytest.raises(ModelError, match=word) as caught:
        _load(folder)
    assert caught.value.model == "tiny"
    assert "\n" not in str(caught.value)


def test_a_config_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json" in _refusal(folder)


def test_a_family_that_is_not_served_is_named_with_those_that_are(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    refusal = _refusal(folder)
    assert "bert" in refusal
    assert "llama" in refusal


def test_a_family_that_nobody_knows_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no_such_family"}))
    assert "no_such_family" in _refusal(folder)


def test_a_model_without_a_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
    assert "tokenizer" in _refusal(folder)


def test_a_tokenizer_that_makes_no_sense_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer" in _refusal(folder)


def test_a_config_whose_numbers_are_none_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": "many"}))
    assert "hidden_size" in _refusal(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_cuda_without_a_device_is_refused(folder: Path) -> None:
    assert "no CUDA device" in _refusal(folder, device="cuda")


def test_weights_quantization_is_refused_until_it_is_there(folder: Path) -> None:
    assert "quantization" in _refusal(folder, quantization="int4")


def test_weights_that_fill_the_budget_are_refused_with_both_numbers(folder: Path) -> None:
    loaded = _load(folder)
    budget_bytes = loaded.model.weights_bytes
    settings = make_settings(memory={"budget": budget_bytes, "floor": 0})
    with pytest.raises(ModelError, match=f"{budget_bytes}") as caught:
        build_engine(settings, loaded, EventLog())
    assert "memory.budget" in str(caught.value)
