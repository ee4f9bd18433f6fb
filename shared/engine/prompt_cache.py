"""Encoded prompts, kept as long as they fit: the empty negative prompt is encoded once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

from shared.engine.calls import PipelineRun, current_run, replaced
from shared.engine.flat_forward import PLAIN


class PromptCache:
    """Outputs of text encoders, the least recently used dropped beyond `max_bytes`.

    It stands before the encoder and not before a pipeline's `encode_prompt`, whose arguments differ
    from pipeline to pipeline; prompt and negative prompt so have entries of their own.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._outputs: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0

    def get(self, key: Hashable, encode: Callable[[], Any]) -> Any:
        """The output kept for `key`, else what `encode` gives."""
        if key in self._outputs:
            self.num_hits += 1
            self._outputs.move_to_end(key)
            return self._outputs[key][0]
        self.num_misses += 1
        output = encode()
        self._keep(key, output)
        return output

    def _keep(self, key: Hashable, output: Any) -> None:
        tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        num_bytes = sum(tensor.nbytes for tensor in tensors)
        if num_bytes > self._max_bytes:
            return
        self._outputs[key] = (output, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._outputs.popitem(last=False)[1][1]


@contextmanager
def caching(
    encoder: nn.Module, cache: PromptCache, prepare: Callable[[PipelineRun], Hashable]
) -> Iterator[None]:
    """Within it, a call of `encoder` from inside a run is answered from `cache` if it is there.

    `prepare` readies the encoder for a run, and gives what its output depends on beside the input.
    """
    own = encoder.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        run = current_run()
        if run is None:
            return own(*args, **kwargs)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        key = (id(encoder), prepare(run), spec, *(_leaf_key(leaf) for leaf in leaves))
        return cache.get(key, lambda: own(*args, **kwargs))

    with replaced(encoder, "forward", forward):
        yield


def _leaf_key(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return (leaf.shape, leaf.dtype, leaf.cpu().numpy().tobytes())
    return leaf if isinstance(leaf, PLAIN) else object()
