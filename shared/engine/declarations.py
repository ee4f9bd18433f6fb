"""How the forward of each module class takes its rows: one entry per class, none per pipeline.

A class that is missing here still runs, each of its calls in a forward of its own. To add one,
read the signature of its forward and say which arguments are not a tensor with one line per row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from torch import nn


@dataclass(frozen=True)
class Arguments:
    """Where the rows of a forward are. Any tensor not named here has one line per row.

    `sample` is what is denoised or decoded: (rows, channels, height, width), or a list of
    (channels, frames, height, width), or, with `packing`, (rows, tokens, channels).
    """

    sample: str
    scalars: frozenset[str] = frozenset()  # one value for all rows, or one for each
    shared: frozenset[str] = frozenset()  # tensors without rows; equal ones can share a forward
    lists: frozenset[str] = frozenset()  # lists with one entry per row
    # Lists whose entries differ in length, which the module itself pads to a multiple of this.
    ragged: Mapping[str, int] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()  # taken by the signature, but without effect
    packing: int | None = None  # latents per side of a token
    returns_list: bool = False  # one entry per row, not a tensor


_UNET: Final = Arguments("sample", scalars=frozenset({"timestep"}))
_TRANSFORMER: Final = Arguments("hidden_states", scalars=frozenset({"timestep"}))

_FORWARDS: Final = {
    "UNet2DConditionModel": _UNET,
    "ControlNetModel": _UNET,
    "SD3Transformer2DModel": _TRANSFORMER,
    "PixArtTransformer2DModel": _TRANSFORMER,
    "SanaTransformer2DModel": _TRANSFORMER,
    "FluxTransformer2DModel": Arguments(
        "hidden_states",
        scalars=frozenset({"timestep"}),
        shared=frozenset({"img_ids", "txt_ids"}),
        packing=2,
    ),
    "QwenImageTransformer2DModel": Arguments(
        "hidden_states",
        scalars=frozenset({"timestep"}),
        lists=frozenset({"img_shapes"}),
        packing=2,
    ),
    "ZImageTransformer2DModel": Arguments(
        "x",
        scalars=frozenset({"t"}),
        lists=frozenset({"x"}),
        ragged={"cap_feats": 32},
        returns_list=True,
    ),
}

_DECODES: Final = {
    "AutoencoderKL": Arguments("z", unused=frozenset({"generator"})),
    "AutoencoderDC": Arguments("z"),
}


def arguments_of(module: nn.Module, method: str = "forward") -> Arguments | None:
    """The declaration of a module's `forward` or `decode`; None where there is none."""
    table = _FORWARDS if method == "forward" else _DECODES
    return table.get(type(module).__name__)
