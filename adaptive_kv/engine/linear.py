"""Linear layers on CPU: large weights are laid out once for the processor, others read by the row.

oneDNN, the library inside torch, multiplies fastest with weights in blocks of its own choice;
`nn.Linear` keeps them in rows. The operators used here are those that torch's own compiler emits
for frozen models. docs/decisions/0003-blocked-weights.md has the figures.
"""

import functools
from collections import Counter

import torch
from torch import Tensor, nn

_MIN_BYTES = 2**21
"""Smaller weights stay in rows: what a call takes to begin is more than blocks gain."""

_TYPICAL_ROWS = 64
"""What the blocks are chosen for; measured to be good for 1 to 512 rows."""


class BlockedLinear(nn.Module):
    """As the `nn.Linear` that it is made from, for inference; `weight` has oneDNN's own layout.

    Raises `RuntimeError` where this processor cannot multiply weights of this type so.
    """

    weight: Tensor

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        reorder = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001 - nothing public does it
        self.register_buffer("weight", reorder(plain.weight.detach(), _TYPICAL_ROWS))
        self.bias = plain.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        return _multiply(hidden, self.weight, self.bias)


class FewRowsLinear(nn.Module):
    """As the `nn.Linear` whose weight it uses; few rows have a product of their own."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        from adaptive_kv.engine import few_rows  # noqa: PLC0415 - loads Numba

        self.weight, self.bias = plain.weight, plain.bias
        # A module looks up its parameters slowly.
        self._multiply_few = functools.partial(few_rows.multiply, plain.weight.detach())
        self._has_bias = plain.bias is not None
        self._max_elements = few_rows.MAX_ROWS[plain.weight.dtype] * plain.in_features
        is_single = plain.weight.dtype is torch.float32 and _has_operators()
        self._multiply_many = _multiply if is_single else nn.functional.linear

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        if not 0 < hidden.numel() <= self._max_elements:
            return self._multiply_many(hidden, self.weight, self.bias)
        out = self._multiply_few(hidden)
        if self._has_bias:
            out += self.bias
        return out.to(hidden.dtype)


def read_by_row(module: nn.Module) -> int:
    """Replace the linear layers that are still plain, in place; returns how many."""
    from adaptive_kv.engine.few_rows import can_multiply  # noqa: PLC0415 - loads Numba

    found = [each for each in _plain_layers(module) if can_multiply(each[2].weight)]
    for parent, name, plain in found:
        setattr(parent, name, FewRowsLinear(plain))
    return len(found)


def block_linears(module: nn.Module) -> int:
    """Replace large linear layers of a model on a CPU in place; returns how many.

    A weight that something else uses too, as tied embeddings do, stays as it is: nothing is kept
    twice. Where the processor or torch cannot do it, all layers stay.
    """
    if not _has_operators():
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


def _has_operators() -> bool:
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _multiply(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's product, of weights in blocks or in rows."""
    operator = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
    out: Tensor = operator(hidden, weight, bias, "none", [], "")
    return out


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
