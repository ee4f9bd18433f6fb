"""A module's forward of tensors alone, one after another, as what reads a module wants it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

# Arguments that are alike if they are equal.
PLAIN = (type(None), bool, int, float, str)

# How arguments are built of tensors: the structure, and what else there is in it by its place.
Rest = tuple[pytree.TreeSpec, tuple[Any, ...]]
TENSOR = object()


class FlatForward(nn.Module):
    """`own`, a forward of `module`, with `rest` for what is no tensor.

    It has to give one tensor in a tuple.
    """

    def __init__(self, module: nn.Module, own: Callable[..., Any], rest: Rest) -> None:
        super().__init__()
        self.module = module  # whose weights are part of this then
        self._own, self._rest = own, rest

    def forward(self, *tensors: Tensor) -> Tensor:
        (output,) = self._own(**_joined(tensors, self._rest))
        tensor: Tensor = output
        return tensor


def split(kwargs: dict[str, Any]) -> tuple[list[Tensor], Rest]:
    """The tensors, and the rest."""
    leaves, spec = pytree.tree_flatten(kwargs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return tensors, (spec, tuple(TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves))


def _joined(tensors: Sequence[Tensor], rest: Rest) -> dict[str, Any]:
    spec, others = rest
    left = iter(tensors)
    leaves = [next(left) if other is TENSOR else other for other in others]
    kwargs: dict[str, Any] = pytree.tree_unflatten(leaves, spec)
    return kwargs
