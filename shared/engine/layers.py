"""A module's layers as the engine runs them: a row's bits do not depend on its company.

Matrix products are cut differently for different sizes, and with them the order of additions. What
was found to keep a row's bits (docs/decisions.md), as far as layers can by themselves:

- In bfloat16 on a CPU, weights lie arranged as oneDNN wants them for one line, and not at each call
  anew as it wants them for as many as there are; that is faster, too.
- Elsewhere, Linear layers whose input has one line per row (embeddings of time and pooled text) run
  on a fixed number of lines. They are so small that this costs next to nothing.
- On a CPU, activations are cut among threads only where a vector of elements ends.

And cross-attention there is over as many keys as fill vectors, which is faster.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from diffusers.models.activations import GEGLU, GELU
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from shared.engine.calls import replaced

_Layer = Callable[[Tensor], Tensor]
_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Tensor])

# For what does other things with other numbers of rows: a recording of a forward has it whole, and
# not only the way that its example took. Such functions are in the part of Python that TorchScript
# knows, and get what is global as arguments.
_with_all_its_ways: Callable[[_FunctionT], _FunctionT] = torch.jit.script_if_tracing

# torch's elementwise loops: a thread has at least so many elements (at::internal::GRAIN_SIZE), and
# takes two vectors at once, of 64 bytes each in the widest processors.
_GRAIN = 32768
_VECTORS_BYTES = 128

_LINEAR_LINES = 32
_MOST_LINES = 64  # beyond, the lines are tokens and not rows

# oneDNN has another algorithm for so few pixels of some numbers of channels and of rows.
_FEW_PIXELS = 4

# From here on torch normalises groups in channels_last by shares of pixels (feature_map_threshold):
# the pixels of all pictures together are shared out among threads.
_MANY_PIXELS = 1024
# Whole pictures to each thread. With more threads, most would wait where there are few pictures.
_FEW_THREADS = 2

# The number of torch's threads, in a recording, of which it has to be an input: who replays it
# says how many there are then.
NUM_THREADS = torch.tensor(1)

# torch's softmax takes keys in vectors, of 16 in the widest processors, and what is left one by
# one. Of few queries that is soon done.
_VECTOR_KEYS = 16
_FEW_QUERIES = 64

_CLASSES = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.SiLU, nn.GELU, GELU, GEGLU, Attention)

_are_plain = ContextVar("plain layers", default=False)


def device_type(module: nn.Module) -> str:
    """Where its weights are; a module without any can be anywhere, and is taken to be on a CPU."""
    weight = next(module.parameters(), None)
    return "cpu" if weight is None else weight.device.type


def multiplies_by_row(module: nn.Module) -> bool:
    """Whether its matrix products are, in layers as they are here: in bfloat16 on a CPU."""
    weight = next(module.parameters(), torch.empty(0))
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16


@contextmanager
def rows_kept_apart(module: nn.Module) -> Iterator[None]:
    """Within it, the module's layers give a row the same bits, as far as they can by themselves."""
    by_row = multiplies_by_row(module)
    packs = by_row and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    is_on_cpu = device_type(module) == "cpu"
    with ExitStack() as stack:
        for layer in module.modules():
            if packs and isinstance(layer, nn.Linear) and _is_multiplying(layer):
                stack.enter_context(replaced(layer, "forward", _PackedLinear(layer)))
            elif packs and isinstance(layer, nn.Conv2d) and _is_multiplying(layer):
                stack.enter_context(replaced(layer, "forward", _PackedConvolution(layer)))
            elif packs and isinstance(layer, nn.GroupNorm) and _is_own(layer):
                stack.enter_context(replaced(layer, "forward", _by_whole_pictures(layer)))
            elif isinstance(layer, nn.Linear) and not by_row:
                stack.enter_context(replaced(layer, "forward", _in_pieces(layer.forward)))
            elif isinstance(layer, nn.SiLU | nn.GELU | GELU | GEGLU) and _is_own(layer):
                method = "gelu" if isinstance(layer, GELU | GEGLU) else "forward"
                even = _evenly(getattr(layer, method), _kind(layer))
                stack.enter_context(replaced(layer, method, even))
            elif is_on_cpu and isinstance(layer, Attention) and _is_own(layer):
                stack.enter_context(replaced(layer, "forward", _with_even_keys(layer)))
        yield


@contextmanager
def plain_layers() -> Iterator[None]:
    """Within it, in this thread, layers are the module's own again: for what reads them."""
    token = _are_plain.set(True)
    try:
        yield
    finally:
        _are_plain.reset(token)


def num_threads() -> Tensor:
    """How many threads torch has for an operation, in this one."""
    is_recorded = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return NUM_THREADS if is_recorded else _tensor(torch.get_num_threads())


_tensor = functools.cache(torch.tensor)


def arranged_weights(module: nn.Module) -> list[Tensor]:
    """Those that its layers multiply by in place of their own."""
    forwards = [vars(layer).get("forward") for layer in module.modules()]
    return [each.weight for each in forwards if isinstance(each, _Packed)]


def _is_own(layer: nn.Module) -> bool:
    """Whether it computes as its class here does: subclasses and such as others wrap do not."""
    return type(layer) in _CLASSES and not vars(layer).keys() & {"forward", "gelu"}


def _is_multiplying(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether it does by its weight as it lies there: quantized ones do not."""
    if not _is_own(layer):
        return False
    is_padded_alike = isinstance(layer, nn.Linear) or (
        layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    )
    return is_padded_alike and type(layer.weight) is nn.Parameter


class _Packed(ABC):
    """A layer's forward whose weight lies as oneDNN wants it for a single line, whatever comes.

    Else oneDNN arranges it anew at every call, each time as it suits the number of lines, which
    then decides about the order of additions.
    """

    def __init__(self, own: _Layer) -> None:
        self._own = own

    def __call__(self, inputs: Tensor) -> Tensor:
        # A compiler may have the module cast to read it.
        is_own = _is_read() or inputs.dtype != torch.bfloat16
        return self._own(inputs) if is_own else self._multiply(inputs)

    @functools.cached_property
    @abstractmethod
    def weight(self) -> Tensor:
        """The layer's own, arranged."""

    @abstractmethod
    def _multiply(self, inputs: Tensor) -> Tensor: ...


class _PackedLinear(_Packed):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.forward)
        self._layer = layer

    @functools.cached_property
    def weight(self) -> Tensor:
        weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(self._layer.weight.detach(), 1)
        return weight

    def _multiply(self, inputs: Tensor) -> Tensor:
        return _linear(inputs, self.weight, self._layer.bias)


@_with_all_its_ways
def _linear(lines: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if lines.dim() > 1 and lines.numel() == lines.size(-1):
        # Where bfloat16 is imitated (AVX-512 alone), a single line is another algorithm.
        return _product(torch.cat([lines, lines]), weight, bias)[:1]
    return _product(lines, weight, bias)


def _product(lines: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(lines, weight, bias, "none", [], "")
    return product


class _PackedConvolution(_Packed):
    """It makes more than a few pixels, always."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer.forward)
        self._layer = layer
        self._settings = (
            [int(side) for side in layer.padding],
            list(layer.stride),
            list(layer.dilation),
            layer.groups,
        )

    @functools.cached_property
    def weight(self) -> Tensor:
        own = self._layer.weight.detach()
        weight: Tensor = torch.ops.mkldnn._reorder_convolution_weight(own, *self._settings)
        return weight

    def _multiply(self, inputs: Tensor) -> Tensor:
        return _convolution(
            inputs, self.weight, self._layer.bias, list(self._layer.kernel_size), *self._settings
        )


@_with_all_its_ways
def _convolution(
    pictures: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel_size: list[int],
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    few_pixels: int = _FEW_PIXELS,
) -> Tensor:
    sides = [0, 0]
    for axis in range(2):
        reach = dilation[axis] * (kernel_size[axis] - 1)
        side = pictures.size(axis - 2)
        sides[axis] = (side + 2 * padding[axis] - reach - 1) // stride[axis] + 1
    has_few = sides[0] * sides[1] <= few_pixels
    if has_few:
        pictures = F.pad(pictures, [0, 2 * stride[1], 0, 2 * stride[0]])
    made: Tensor = torch.ops.mkldnn._convolution_pointwise(
        pictures, weight, bias, padding, stride, dilation, groups, "none", [], ""
    )
    return made[:, :, : sides[0], : sides[1]] if has_few else made


def _by_whole_pictures(layer: nn.GroupNorm) -> _Layer:
    """A GroupNorm between packed convolutions, which want pictures in channels_last.

    For small ones it takes several times as long as they are then.
    """
    own = layer.forward

    def forward(pictures: Tensor) -> Tensor:
        if _is_read():
            return own(pictures)
        return _group_norm(
            pictures, layer.num_groups, layer.weight, layer.bias, layer.eps, num_threads()
        )

    return forward


@_with_all_its_ways
def _group_norm(
    pictures: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    threads: Tensor,
    many_pixels: int = _MANY_PIXELS,
    few_threads: int = _FEW_THREADS,
) -> Tensor:
    if pictures.is_contiguous() or pictures[0, 0].numel() < many_pixels:
        normed = F.group_norm(pictures.contiguous(), num_groups, weight, bias, eps)
        return normed.contiguous(memory_format=torch.channels_last) if normed.dim() == 4 else normed
    number, shares = pictures.size(0), int(threads)
    if shares > few_threads:
        alone = torch.split(pictures, 1)
        return torch.cat([F.group_norm(one, num_groups, weight, bias, eps) for one in alone])
    if number % shares != 0:
        pictures = torch.cat([pictures, pictures[:1]])
    return F.group_norm(pictures, num_groups, weight, bias, eps)[:number]


def _in_pieces(own: _Layer) -> _Layer:
    """A Linear layer that takes few lines in pieces of a fixed number."""

    def forward(lines: Tensor) -> Tensor:
        if lines.ndim != 2 or len(lines) > _MOST_LINES or _is_converted():
            return own(lines)
        # By `shape`, which a recording follows: it is for as many pieces as its example had.
        padded = F.pad(lines, (0, 0, 0, -lines.shape[0] % _LINEAR_LINES))
        pieces = padded.chunk(len(padded) // _LINEAR_LINES)
        if len(pieces) == 1:
            return own(padded)[: lines.shape[0]]
        return torch.cat([own(piece) for piece in pieces])[: lines.shape[0]]

    return forward


def _evenly(own: _Layer, kind: str) -> _Layer:
    """An activation whose elements are all computed by vectors.

    What does not fill a vector at the end of a thread's share is computed one by one, by another
    approximation of the exponential function; where that is depends on the number of rows. In
    bfloat16 most of that is rounded away, but not all: GELU differs for three of all its values
    (with AVX2).
    """

    def activate(elements: Tensor) -> Tensor:
        if not elements.is_cpu or _is_read():
            return own(elements)
        return _activate(elements, kind, num_threads())

    return activate


@_with_all_its_ways
def _activate(
    elements: Tensor, kind: str, threads: Tensor, vectors_bytes: int = _VECTORS_BYTES
) -> Tensor:
    is_last = False
    if not elements.is_contiguous():  # torch's choice of kernel depends on it
        is_last = elements.is_contiguous(memory_format=torch.channels_last)
        elements = elements.permute(0, 2, 3, 1) if is_last else elements.contiguous()
    unit = vectors_bytes // elements.element_size()
    sizes = _even_pieces(elements.numel(), unit, int(threads))
    if len(sizes) == 1:
        activated = _activated(elements, kind)
    else:
        pieces = torch.split(elements.reshape(-1), sizes)
        activated = torch.cat([_activated(piece, kind) for piece in pieces]).reshape(elements.shape)
    return activated.permute(0, 3, 1, 2) if is_last else activated


def _kind(layer: nn.SiLU | nn.GELU | GELU | GEGLU) -> str:
    return "silu" if isinstance(layer, nn.SiLU) else getattr(layer, "approximate", "none")


def _activated(elements: Tensor, kind: str) -> Tensor:
    return F.silu(elements) if kind == "silu" else F.gelu(elements, approximate=kind)


def _even_pieces(numel: int, unit: int, threads: int) -> list[int]:
    """Sizes that torch cuts into shares of whole units; the last is less than a unit a thread."""
    sizes: list[int] = []
    while numel > 0:
        sizes.append(_even_size(numel, unit, threads))
        numel -= sizes[-1]
    return sizes


def _even_size(numel: int, unit: int, threads: int, grain: int = _GRAIN) -> int:
    shares = max(1, min(threads, (numel + grain - 1) // grain))
    while shares > 1 and numel % (shares * unit) != 0:
        numel -= numel % (shares * unit)
        shares = max(1, min(threads, (numel + grain - 1) // grain))
    return numel


def _only_attends(layer: Attention) -> bool:
    """Whether that is all; pipelines may give it another processor for a while."""
    others = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k", "residual_connection")
    is_stock = type(layer.processor) is AttnProcessor2_0 and layer.rescale_output_factor == 1
    return is_stock and not any(getattr(layer, other) for other in others)


def _with_even_keys(layer: Attention) -> Callable[..., Tensor]:
    own = layer.forward

    def forward(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        is_of_all = encoder_hidden_states is not None and attention_mask is None and not others
        if _is_read() or not is_of_all or hidden_states.ndim != 3 or not _only_attends(layer):
            made: Tensor = own(hidden_states, encoder_hidden_states, attention_mask, **others)
            return made
        query = layer.to_q(hidden_states)
        key, value = layer.to_k(encoder_hidden_states), layer.to_v(encoder_hidden_states)
        heads = [
            each.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for each in (query, key, value)
        ]
        made = _attention(*heads).transpose(1, 2).flatten(2)
        for last in layer.to_out:
            made = last(made)
        return made

    return forward


@_with_all_its_ways
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    vector_keys: int = _VECTOR_KEYS,
    few_queries: int = _FEW_QUERIES,
) -> Tensor:
    """As many keys as fill vectors: others beside them, of which nothing is taken."""
    number = key.size(-2)
    missing = -number % vector_keys
    if missing == 0 or query.size(-2) < few_queries:
        return F.scaled_dot_product_attention(query, key, value)
    of_keys = torch.zeros([1, 1, 1, number], dtype=query.dtype, device=query.device)
    mask = F.pad(of_keys, [0, missing], value=float("-inf"))
    key, value = F.pad(key, [0, 0, 0, missing]), F.pad(value, [0, 0, 0, missing])
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _is_read() -> bool:
    """By a compiler, which makes its own of it."""
    return torch.compiler.is_compiling() or _are_plain.get()


def _is_converted() -> bool:
    """By what takes numbers of rows for fixed. dynamo does not, and cannot look at the variable."""
    return not torch.compiler.is_compiling() and _are_plain.get()
