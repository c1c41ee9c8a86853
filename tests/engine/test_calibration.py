"""What calibration measures is what a numeric oracle says, within the memory it is given."""

import math

import pytest
import torch
from driver import make_store
from engines import KIB, MIB, Faults, FaultyBudget, tokenizer
from models import make_module, prepared, prompt, stock

from adaptive_kv.attention.batch import RaggedBatch, Row
from adaptive_kv.cache import switch
from adaptive_kv.cache.geometry import Keep
from adaptive_kv.cache.slab import Budget
from adaptive_kv.cache.table import SequenceCache
from adaptive_kv.config import ModelSettings
from adaptive_kv.engine.calibrating import built_in_text
from adaptive_kv.engine.calibration import MAX_TOKENS, calibrate
from adaptive_kv.engine.loading import load_model
from adaptive_kv.engine.losses import Calibration, FormatLoss
from adaptive_kv.engine.model import Model, prepare
from adaptive_kv.engine.text import PromptEncoder
from adaptive_kv.policy import CacheMode

KEEP = Keep(sinks=16, recent=32)
FIRST = 16 + 32 + 64
IDS = prompt(400)


def measured(
    model: Model, ids: list[int] = IDS, budget: Budget | None = None, formats: tuple[str, ...] = ()
) -> Calibration:
    found = calibrate(
        model,
        ids,
        keep=KEEP,
        slab_bytes=32 * KIB,
        budget=budget or Budget(),
        formats=formats or ("int8", "int4"),
    )
    assert found is not None
    return found


def logits_of(model: Model, ids: list[int], mode: str, chunk_tokens: int) -> torch.Tensor:
    """Log probabilities after every token, chunk by chunk over a cache in `mode`."""
    store = make_store(model.groups, KEEP)
    cache = SequenceCache(store, CacheMode(mode))
    parts = []
    for start in range(0, len(ids), chunk_tokens):
        new = ids[start : start + chunk_tokens]
        cache.reserve(len(new))
        row, at = Row(cache, start, len(new)), range(start, start + len(new))
        parts.append(model.forward(new, at, range(len(new)), RaggedBatch(store, [row])))
        cache.commit(len(new), is_exact=row.is_exact)
        switch.advance(cache)
    return torch.cat(parts).double().log_softmax(-1)


def test_full_against_full_is_no_loss_at_all() -> None:
    found = measured(prepared(), formats=("full",))
    loss = found.formats["full"]
    assert (loss.kl_divergence, loss.top1_agreement) == (0.0, 1.0)
    assert loss.perplexity == found.perplexity


def test_the_perplexity_of_full_is_the_stock_models() -> None:
    with torch.inference_mode():
        logits = stock()(input_ids=torch.tensor([IDS]), use_cache=False).logits[0].double()
    surprise = torch.nn.functional.cross_entropy(logits[FIRST:-1], torch.tensor(IDS[FIRST + 1 :]))
    found = measured(prepared())
    assert found.perplexity == pytest.approx(surprise.exp().item(), rel=1e-4)
    assert (found.num_tokens, found.num_positions) == (400, 400 - 1 - FIRST)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_losses_are_those_of_the_chunks_that_packed_pages_answer(name: str) -> None:
    full, packed = (logits_of(prepared(), IDS, mode, 32)[FIRST:-1] for mode in ("full", name))
    kl = torch.nn.functional.kl_div(packed, full, log_target=True, reduction="batchmean")
    agreement = (packed.argmax(-1) == full.argmax(-1)).double().mean()
    loss = measured(prepared()).formats[name]
    assert loss.kl_divergence == pytest.approx(kl.item(), rel=1e-2)
    assert loss.top1_agreement == pytest.approx(agreement.item(), abs=2 / len(IDS))
    assert kl > 0


def test_int4_loses_more_than_int8() -> None:
    formats = measured(prepared()).formats
    assert formats["int4"].kl_divergence > 10 * formats["int8"].kl_divergence


def test_what_is_no_number_is_struck() -> None:
    module = make_module()
    with torch.no_grad():
        module.lm_head.weight[5] = torch.nan
    found = measured(prepare(module))
    assert math.isnan(found.formats["int8"].kl_divergence)
    assert found.struck(1e9) == {"int8", "int4"}


def test_a_format_is_struck_when_it_loses_more_than_the_limit() -> None:
    losses = {
        name: FormatLoss(kl_divergence=kl, top1_agreement=0.5, perplexity=9.0)
        for name, kl in (("int8", 0.1), ("int4", 0.10001))
    }
    found = Calibration(num_tokens=9, num_positions=9, perplexity=8.0, formats=losses)
    assert found.struck(0.1) == {"int4"}
    assert found.struck(0.2) == set()
    assert found.struck(0.01) == {"int8", "int4"}


@pytest.mark.parametrize("family", ["gemma3_text", "gpt_oss", "mistral"])
def test_models_with_windows_of_their_own_are_calibrated(family: str) -> None:
    assert measured(prepared(family)).formats["int8"].kl_divergence < 0.1


# Bounds


def test_a_configuration_that_keeps_much_unpacked_is_still_measured() -> None:
    found = calibrate(prepared(), IDS, keep=Keep(16, 4096), slab_bytes=32 * KIB, budget=Budget())
    assert found is not None
    assert found.num_positions == 400 - 1 - (16 + 100 + 64)
    assert found.formats["int4"].kl_divergence > 0


def test_a_long_text_is_cut_at_the_context() -> None:
    model = prepare(make_module(), max_context=300)
    assert measured(model).num_tokens == 300
    assert measured(prepared(), prompt(1100)).num_tokens == 1024 < MAX_TOKENS


def test_a_text_that_is_too_short_says_nothing() -> None:
    short = IDS[: FIRST + 20]
    assert calibrate(prepared(), short, keep=KEEP, slab_bytes=32 * KIB, budget=Budget()) is None


def test_a_tight_budget_is_kept_with_less_of_the_text() -> None:
    model = prepared()
    limit_bytes = model.weights_bytes + int(1.4 * MIB)
    budget = Budget(limit_bytes, model.weights_bytes)
    found = measured(model, budget=budget)
    assert 100 < found.num_tokens < 400
    assert budget.cache_bytes == budget.workspace_bytes == 0
    assert 0 < budget.peak_cache_bytes <= limit_bytes - model.weights_bytes


def test_the_floor_is_kept_too() -> None:
    budget = Budget()
    budget.allowance_bytes = 512 * KIB
    found = measured(prepared(), budget=budget)
    assert found.num_tokens < 400
    assert budget.peak_cache_bytes <= 512 * KIB
    assert budget.allowance_bytes == 512 * KIB


def test_without_any_room_there_is_no_answer() -> None:
    model = prepared()
    budget = Budget(model.weights_bytes + 64 * KIB, model.weights_bytes)
    assert calibrate(model, IDS, keep=KEEP, slab_bytes=32 * KIB, budget=budget) is None
    assert budget.used_bytes == model.weights_bytes


@pytest.mark.parametrize("failing", [1, 3, 20, 40])
def test_a_device_that_runs_out_gets_everything_back_and_is_asked_for_less(failing: int) -> None:
    faults = Faults(failing=lambda n: n == failing)
    budget = type("Budget", (FaultyBudget,), {"faults": faults})()
    assert measured(prepared(), budget=budget).num_tokens == 200
    assert budget.cache_bytes == budget.workspace_bytes == 0


# The embedded model


def test_int8_agrees_with_full_on_the_embedded_model() -> None:
    loaded = load_model(ModelSettings(device="cpu"))
    ids = PromptEncoder(loaded.tokenizer).encode_text(built_in_text())
    found = calibrate(loaded.model, ids, keep=Keep(16, 128), slab_bytes=2 * MIB, budget=Budget())
    assert found is not None
    assert found.num_positions > 1000
    int8, int4 = found.formats["int8"], found.formats["int4"]
    assert int8.top1_agreement >= 0.99
    assert int4.top1_agreement >= 0.95
    assert int8.kl_divergence < int4.kl_divergence < 0.1
    assert found.struck(0.1) == set()


def test_the_text_is_long_enough_for_every_tokenizer() -> None:
    """Few have more than five characters to a token; one at a time is the most there can be."""
    assert len(built_in_text()) / 5 > 1000
    assert built_in_text().isascii()
    assert len(PromptEncoder(tokenizer()).encode_text(built_in_text())) < MAX_TOKENS
