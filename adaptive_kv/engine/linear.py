"""Linear layers on CPU: large weights are laid out once for the processor, others read by the row.

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


class RowLinear(nn.Module):
    """As the `nn.Linear` whose weight it uses; one row has a product of its own."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        from adaptive_kv.engine.one_row import multiply_row  # noqa: PLC0415 - loads Numba

        self.weight, self.bias = plain.weight, plain.bias
        self._shape = plain.out_features, plain.in_features
        self._rows = plain.weight.detach().numpy()
        self._multiply_row = multiply_row

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        num_out, num_in = self._shape
        if hidden.numel() != num_in:
            return nn.functional.linear(hidden, self.weight, self.bias)
        out = hidden.new_empty(*hidden.shape[:-1], num_out)
        self._multiply_row(self._rows, hidden.reshape(-1).numpy(), out.view(-1).numpy())
        return out if self.bias is None else out.add_(self.bias)


def read_by_row(module: nn.Module) -> int:
    """Replace the float32 linear layers that are still plain, in place; returns how many."""
    num_replaced = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if _is_plain(child) and child.weight.dtype is torch.float32:
                setattr(parent, name, RowLinear(child))
                num_replaced += 1
    return num_replaced


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


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether nothing is lost if another layer takes its place: hooks would be."""
    if type(module) is not nn.Linear or module.weight.device.type != "cpu":
        return False
    return not (module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001


def _is_worth_it(module: nn.Module) -> TypeGuard[nn.Linear]:
    return _is_plain(module) and module.weight.numel() * module.weight.element_size() >= _MIN_BYTES
