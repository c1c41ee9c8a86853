"""Norms in one pass: transformers spells RMSNorm out in six operators, torch on a CPU in seven.

What a module computes is found by trying: it is replaced only where torch's own gives the same.
"""

import torch
from torch import Tensor, nn

_TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Relative to the largest element. Transformers rounds once more before it applies the weight."""


class OnePassRMSNorm(nn.RMSNorm):
    """As `nn.RMSNorm`, on a CPU, for inference."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__(len(weight), eps, dtype=weight.dtype)
        from adaptive_kv.engine.norm_kernel import normalize  # noqa: PLC0415 - loads Numba

        self._factors = weight.detach().float()
        self._normalize = normalize

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., dim]` to the same."""
        return self._normalize(hidden, self._factors, self.eps or 0.0)


def fuse_norms(module: nn.Module) -> int:
    """Replace the RMSNorms of a model in place; returns how many."""
    num_replaced = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            fused = _fused(child)
            if fused is not None:
                setattr(parent, name, fused)
                num_replaced += 1
    return num_replaced


def _fused(norm: nn.Module) -> nn.RMSNorm | None:
    """The equal of `norm`; None where it is no RMSNorm, or an unusual one."""
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not type(norm).__name__.endswith("RMSNorm") or isinstance(norm, nn.RMSNorm):
        return None
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    if weight.device.type == "meta":
        return None
    # Gemma's weights are what is added to one.
    candidates = (_make(part, eps) for part in (weight.detach(), weight.detach() + 1))
    return next((fused for fused in candidates if _are_equal(norm, fused)), None)


def _make(weight: Tensor, eps: float) -> nn.RMSNorm:
    if weight.device.type == "cpu":
        fused: nn.RMSNorm = OnePassRMSNorm(weight, eps)
    else:
        fused = nn.RMSNorm(len(weight), eps, device=weight.device, dtype=weight.dtype)
    fused.weight = nn.Parameter(weight, requires_grad=False)
    return fused


def _are_equal(norm: nn.Module, fused: nn.RMSNorm) -> bool:
    weight = fused.weight
    generator = torch.Generator(weight.device).manual_seed(0)
    shape = (1, 4, len(weight))
    hidden = torch.randn(shape, generator=generator, device=weight.device).to(weight.dtype)
    with torch.inference_mode():
        wanted, found = norm(hidden), fused(hidden)
    if not isinstance(wanted, Tensor) or wanted.dtype != found.dtype:
        return False
    error = (wanted - found).abs().max() / wanted.abs().max()
    return bool(error <= _TOLERANCE.get(weight.dtype, 0.0))
