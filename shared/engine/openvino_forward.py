"""A UNet's forward, converted and run by OpenVINO: what is fastest on a CPU with few rows."""

import warnings
from collections.abc import Callable
from typing import Any

import openvino
import torch
import torch.utils._pytree as pytree
from openvino import opset8
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from shared.engine.flat_forward import FlatForward, split
from shared.engine.layers import plain_layers

# Of what it makes to what the module makes; bfloat16 alone is off by a hundredth.
_MOST_ERROR = 0.1


class OpenVinoForward:
    """Calls `own`, a module's forward, through OpenVINO where the arguments are such as `kwargs`.

    They may have other sizes; where a size does not fit, `own` itself is called. Raises ValueError
    if OpenVINO does not do what the module does, whose Python may depend on sizes, and RuntimeError
    if it depends on the number of rows.
    """

    def __init__(self, module: nn.Module, own: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        self._own = own
        tensors, self._rest = split(kwargs)
        dtype = tensors[0].dtype
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "ENABLE_CPU_PINNING": False,  # engines side by side would all take the first cores
        }
        nn.Module.to(module, torch.float32)  # it reads nothing else; and back, without a loss
        try:
            flat = FlatForward(module, own, self._rest)
            model = _converted(flat, tuple(tensor.float() for tensor in tensors))
            self._run = openvino.Core().compile_model(model, "CPU", settings)
            self._fits = _Fits(model)
        finally:
            nn.Module.to(module, dtype)
        self._check(kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors, rest = split(kwargs)
        if args or rest != self._rest or not self._fits(tensors):
            return self._own(*args, **kwargs)
        (output,) = self._run([tensor.float().numpy() for tensor in tensors]).values()
        return (torch.from_numpy(output).to(tensors[0].dtype),)

    def _check(self, kwargs: dict[str, Any]) -> None:
        for change in (_as_it_is, _turned, _with_a_row_less):
            example = pytree.tree_map(change, kwargs)
            if not self._fits(split(example)[0]):
                raise ValueError("what OpenVINO made fits no other size")
            (expected,), (found,) = self._own(**example), self(**example)
            error = (found.float() - expected.float()).norm() / expected.float().norm()
            if not error < _MOST_ERROR:
                raise ValueError(f"OpenVINO's output is off by {error:.2f} of the module's")


class _Fits:
    """Whether tensors have sizes for which a model can be run. Takes the model's weights away.

    Others take another way through the module. To try them would not do: after a run that broke off
    OpenVINO takes leftovers of its sizes for those of the next run.
    """

    def __init__(self, model: openvino.Model) -> None:
        self._inputs = list(model.inputs)
        self._model = model
        self._known: dict[tuple[torch.Size, ...], bool] = {}
        weights = [op for op in model.get_ops() if _is_weight(op)]
        model.add_parameters([_without_values(weight) for weight in weights])

    def __call__(self, tensors: list[Tensor]) -> bool:
        sizes = tuple(tensor.shape[1:] for tensor in tensors)
        if sizes not in self._known:
            self._known[sizes] = self._can_have(sizes)
        return self._known[sizes]

    def _can_have(self, sizes: tuple[torch.Size, ...]) -> bool:
        shapes = [openvino.PartialShape([-1, *size]) for size in sizes]
        try:
            self._model.reshape(dict(zip(self._inputs, shapes, strict=True)))
        except RuntimeError:
            return False
        return True


def _is_weight(op: openvino.Node) -> bool:
    """And not a number that sizes are computed with."""
    return bool(op.get_type_name() == "Constant" and op.get_byte_size() > 1024)


def _without_values(weight: openvino.Node) -> openvino.Node:
    parameter = opset8.parameter(weight.get_output_shape(0), weight.get_element_type())
    for target in weight.output(0).get_target_inputs():
        target.replace_source_output(parameter.output(0))
    return parameter


def _converted(flat: nn.Module, example: tuple[Tensor, ...]) -> openvino.Model:
    with warnings.catch_warnings(), plain_layers():
        # Of each size that Python looks at: `_check` tells whether they matter.
        warnings.simplefilter("ignore", TracerWarning)
        return openvino.convert_model(flat, example_input=example)


def _as_it_is(leaf: Any) -> Any:
    return leaf


def _with_a_row_less(leaf: Any) -> Any:
    return leaf[1:] if isinstance(leaf, Tensor) else leaf


def _turned(leaf: Any) -> Any:
    """Pictures with width and height exchanged."""
    if isinstance(leaf, Tensor) and leaf.ndim == 4:
        return leaf.transpose(-1, -2).contiguous()
    return leaf
