"""Linear layers on CPU, their weights laid out once for the processor.

oneDNN, the library inside torch, multiplies fastest with weights in blocks of its own choice;
`nn.Linear` keeps them in rows. The operators used here are those that torch's own compiler emits
for frozen models. docs/decisions/0003-blocked-weights.md has the figures.
"""

from collections import Counter
from typing import TypeGuard

import torch
from torch import Tensor, nn

_MIN_BYTES = 2**20
"""Smaller weights stay in the processor's cache, where the plain product is as fast."""

_TYPICAL_ROWS = 64
"""What the blocks are chosen for; measured to be good for 1 to 512 rows."""


class BlockedLinear(nn.Module):
    """As the `nn.Linear` that it is made from, for inference; `weight` has oneDNN's own layout.

    Raises `RuntimeError` where this processor cannot multiply weights of this type so.
    """

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        reorder = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001 - nothing public does it
        self.register_buffer("weight", reorder(plain.weight.detach(), _TYPICAL_ROWS))
        self.bias = plain.bias
        self._multiply = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        out: Tensor = self._multiply(hidden, self.weight, self.bias, "none", [], "")
        return out


def block_linears(module: nn.Module) -> int:
    """Replace large linear layers of a model on a CPU in place; returns how many.

    A weight that something else uses too, as tied embeddings do, stays as it is: nothing is kept
    twice. Where the processor or torch cannot do it, all layers stay.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0
    modules = list(module.modules())
    num_users = Counter(id(p) for m in modules for p in m.parameters(recurse=False))
    num_replaced = 0
    for parent in modules:
        for name, child in list(parent.named_children()):
            if _is_worth_it(child) and num_users[id(child.weight)] == 1:
                try:
                    setattr(parent, name, BlockedLinear(child))
                except RuntimeError:  # a type that this processor has no product for
                    return num_replaced
                num_replaced += 1
    return num_replaced


def _is_worth_it(module: nn.Module) -> TypeGuard[nn.Linear]:
    if type(module) is not nn.Linear or module.weight.device.type != "cpu":
        return False
    return module.weight.numel() * module.weight.element_size() >= _MIN_BYTES
