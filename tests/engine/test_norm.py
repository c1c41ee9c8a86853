"""Norms in one operator give what those of transformers give."""

from typing import Any

import pytest
import torch
from models import make_module
from torch import Tensor, nn

from adaptive_kv.engine.norm import fuse_norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "gpt_oss", "olmo2"])
def test_a_model_with_fused_norms_gives_the_same_logits(family: str, dtype: torch.dtype) -> None:
    module: Any = make_module(family)
    module, ids = module.to(dtype), torch.arange(7)[None]
    with torch.inference_mode():
        for norm in _norms(module):
            norm.weight.normal_(0.5, 0.2)
        wanted = module(ids).logits.float()
        assert fuse_norms(module) == len(_norms(module)) > 0
        found = module(ids).logits.float()
    limit = 1e-5 if dtype is torch.float32 else 5e-2
    assert (wanted - found).abs().max() <= limit * wanted.abs().max()
    assert fuse_norms(module) == 0


class StrangeRMSNorm(nn.Module):
    """One by its name only."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.eps = 1e-6

    def forward(self, hidden: Tensor) -> Tensor:
        """Something else."""
        return hidden * self.weight


def test_what_computes_something_else_stays() -> None:
    module = nn.Sequential(StrangeRMSNorm(), nn.LayerNorm(8))
    assert fuse_norms(module) == 0


def _norms(module: nn.Module) -> list[Any]:
    """Fused ones, too, are called so."""
    return [part for part in module.modules() if type(part).__name__.endswith("RMSNorm")]
