"""Linear layers on CPU: large weights are laid out once for the processor, others read by the row.

oneDNN, the library inside torch, multiplies fastest with weights in blocks of its own choice;
`nn.Linear` keeps them in rows. The operators used here are those that torch's own compiler emits
for frozen models. docs/decisions/0003-blocked-weights.md has the figures.
"""

from collections import Counter

import torch
from torch import Tensor, nn

_MIN_BYTES = 2**20
"""Smaller weights are read by the row, for whoever decodes alone."""

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
    found = [each for each in _plain_layers(module) if each[2].weight.dtype is torch.float32]
    for parent, name, plain in found:
        setattr(parent, name, RowLinear(plain))
    return len(found)


def block_linears(module: nn.Module) -> int:
    """Replace large linear layers of a model on a CPU in place; returns how many.

    A weight that something else uses too, as tied embeddings do, stays as it is: nothing is kept
    twice. Where the processor or torch cannot do it, all layers stay.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0
    num_users = Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))
    num_replaced = 0
    for parent, name, plain in _plain_layers(module):
        if plain.weight.nbytes >= _MIN_BYTES and num_users[id(plain.weight)] == 1:
            try:
                setattr(parent, name, BlockedLinear(plain))
            except RuntimeError:  # a type that this processor has no product for
                return num_replaced
            num_replaced += 1
    return num_replaced


def _plain_layers(module: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """On a CPU: whose child and under which name, where another layer may take their place."""
    return [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
        and child.weight.device.type == "cpu"
        and not (child._forward_hooks or child._forward_pre_hooks)  # noqa: SLF001 - would be lost
    ]
