"""A module's layers as the engine runs them: a row's bits do not depend on its company.

Matrix products are cut differently for different sizes, and with them the order of additions. What
was found to keep a row's bits (docs/decisions.md), as far as layers can by themselves:

- In bfloat16 on a CPU, weights lie arranged as oneDNN wants them for one line, and not at each call
  anew as it wants them for as many as there are; that is faster, too.
- Elsewhere, Linear layers whose input has one line per row (embeddings of time and pooled text) run
  on a fixed number of lines. They are so small that this costs next to nothing.
- On a CPU, activations are cut among threads only where a vector of elements ends.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from diffusers.models.activations import GEGLU, GELU
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from torch.nn import functional as F

from shared.engine.calls import replaced

_Layer = Callable[[Tensor], Tensor]

# torch's elementwise loops: a thread has at least so many elements (at::internal::GRAIN_SIZE), and
# takes two vectors at once, of 64 bytes each in the widest processors.
_GRAIN = 32768
_VECTORS_BYTES = 128

_LINEAR_LINES = 32
_MOST_LINES = 64  # beyond, the lines are tokens and not rows

# oneDNN has another algorithm for so few pixels of some numbers of channels and of rows.
_FEW_PIXELS = 4

# From here on torch normalises groups in channels_last by shares of pixels (feature_map_threshold).
_MANY_PIXELS = 1024


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
    with ExitStack() as stack:
        for layer in module.modules():
            if packs and isinstance(layer, nn.Linear) and _is_plain(layer):
                stack.enter_context(replaced(layer, "forward", _packed_linear(layer)))
            elif packs and isinstance(layer, nn.Conv2d) and _is_plain(layer):
                stack.enter_context(replaced(layer, "forward", _packed_convolution(layer)))
            elif packs and isinstance(layer, nn.GroupNorm):
                stack.enter_context(replaced(layer, "forward", _by_picture(layer.forward)))
            elif isinstance(layer, nn.Linear) and not by_row:
                stack.enter_context(replaced(layer, "forward", _in_pieces(layer.forward)))
            elif isinstance(layer, nn.SiLU | nn.GELU):
                stack.enter_context(replaced(layer, "forward", _evenly(layer.forward)))
            elif isinstance(layer, GEGLU | GELU):
                stack.enter_context(replaced(layer, "gelu", _evenly(layer.gelu)))
        yield


def _is_plain(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether it computes as torch's does: quantized ones and such as others wrap do not."""
    if type(layer) not in (nn.Linear, nn.Conv2d) or "forward" in vars(layer):
        return False
    is_padded_alike = isinstance(layer, nn.Linear) or (
        layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    )
    return is_padded_alike and type(layer.weight) is nn.Parameter


def _packed_linear(layer: nn.Linear) -> _Layer:
    """A Linear layer whose weight lies as oneDNN wants it for a single line, whatever comes.

    Else oneDNN arranges it anew at every call, each time as it suits the number of lines, which
    then decides about the order of additions.
    """
    own = layer.forward
    weight = functools.cache(
        lambda: torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), 1)
    )

    def multiply(lines: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            lines, weight(), layer.bias, "none", [], ""
        )
        return output

    def forward(lines: Tensor) -> Tensor:
        if _is_converted(lines):
            return own(lines)
        if lines.ndim > 1 and lines.numel() == lines.shape[-1]:
            # Where bfloat16 is imitated (AVX-512 alone), a single line is another algorithm.
            return multiply(torch.cat([lines, lines]))[:1]
        return multiply(lines)

    return forward


def _packed_convolution(layer: nn.Conv2d) -> _Layer:
    """A convolution whose weight is arranged once, and that makes more than a few pixels always."""
    own = layer.forward
    settings = (layer.padding, layer.stride, layer.dilation, layer.groups)
    weight = functools.cache(
        lambda: torch.ops.mkldnn._reorder_convolution_weight(layer.weight.detach(), *settings)
    )

    def convolve(pictures: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            pictures, weight(), layer.bias, *settings, "none", [], ""
        )
        return output

    def forward(pictures: Tensor) -> Tensor:
        if _is_converted(pictures):
            return own(pictures)
        height, width = (
            _side_after(layer, side, axis) for axis, side in enumerate(pictures.shape[-2:])
        )
        if height * width > _FEW_PIXELS:
            return convolve(pictures)
        more = (0, 2 * layer.stride[1], 0, 2 * layer.stride[0])
        return convolve(F.pad(pictures, more))[..., :height, :width]

    return forward


def _side_after(layer: nn.Conv2d, side: int, axis: int) -> int:
    reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    return (side + 2 * int(layer.padding[axis]) - reach - 1) // layer.stride[axis] + 1


def _by_picture(own: _Layer) -> _Layer:
    """A GroupNorm after packed convolutions, which leave pictures in channels_last.

    Small ones it takes several times as long for as they are; in large ones threads share pixels
    of all pictures together.
    """

    def forward(pictures: Tensor) -> Tensor:
        if _is_compiled() or pictures.is_contiguous():
            return own(pictures)
        if pictures.shape[2:].numel() < _MANY_PIXELS:
            return own(pictures.contiguous())
        return torch.cat([own(picture) for picture in torch.split(pictures, 1)])

    return forward


def _in_pieces(own: _Layer) -> _Layer:
    """A Linear layer that takes few lines in pieces of a fixed number."""

    def forward(lines: Tensor) -> Tensor:
        if lines.ndim != 2 or len(lines) > _MOST_LINES or _is_traced():
            return own(lines)
        padded = F.pad(lines, (0, 0, 0, -len(lines) % _LINEAR_LINES))
        pieces = padded.chunk(len(padded) // _LINEAR_LINES)
        if len(pieces) == 1:
            return own(padded)[: len(lines)]
        return torch.cat([own(piece) for piece in pieces])[: len(lines)]

    return forward


def _evenly(own: _Layer) -> _Layer:
    """An activation whose elements are all computed by vectors.

    What does not fill a vector at the end of a thread's share is computed one by one, by another
    approximation of the exponential function; where that is depends on the number of rows. In
    bfloat16 most of that is rounded away, but not all: GELU differs for three of all its values
    (with AVX2).
    """

    def activate(elements: Tensor) -> Tensor:
        if not elements.is_cpu or _is_compiled():
            return own(elements)
        if not elements.is_contiguous():  # torch's choice of kernel depends on it
            if elements.is_contiguous(memory_format=torch.channels_last):
                return activate(elements.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            elements = elements.contiguous()
        unit = _VECTORS_BYTES // elements.element_size()
        sizes = _even_pieces(elements.numel(), unit, torch.get_num_threads())
        if len(sizes) == 1:
            return own(elements)
        pieces = torch.split(elements.reshape(-1), sizes)
        return torch.cat([own(piece) for piece in pieces]).reshape(elements.shape)

    return activate


def _is_converted(inputs: Tensor) -> bool:
    """For a compiler, which may have the module cast to read it."""
    return _is_compiled() or inputs.dtype != torch.bfloat16


def _is_compiled() -> bool:
    return torch.compiler.is_compiling() or _is_traced()


def _is_traced() -> bool:
    """For another compiler, which would take numbers of rows for fixed."""
    return bool(is_tracing())  # type: ignore[no-untyped-call]


@functools.lru_cache(maxsize=4096)
def _even_pieces(numel: int, unit: int, threads: int) -> list[int]:
    """Sizes that torch cuts into shares of whole units; the last is less than a unit a thread."""
    sizes = []
    while numel:
        sizes.append(_even_size(numel, unit, threads))
        numel -= sizes[-1]
    return sizes


def _even_size(numel: int, unit: int, threads: int) -> int:
    while True:
        shares = max(1, min(threads, -(-numel // _GRAIN)))
        rest = numel % (shares * unit)
        if shares == 1 or not rest:
            return numel
        numel -= rest
