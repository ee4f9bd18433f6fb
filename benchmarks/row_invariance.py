"""Which layers give a row other bits when the number of rows changes, and with the engine's remedy.

For every layer whose input line is the same as in a reference forward of 8 rows, compares the
output line bit by bit. Run it on the device and dtype in question:

    python benchmarks/row_invariance.py --model postcard --dtype float32
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from shared.config import ModelConfig
from shared.engine.layers import rows_kept_apart
from shared.pipeline import load_pipeline

REFERENCE_ROWS = 8
ROW_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16)

Lines = dict[str, tuple[Tensor, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="postcard")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--side", type=int, default=32, help="latents per side (%(default)s)")
    options = parser.parse_args()
    unet = load_pipeline(ModelConfig(name=options.model, dtype=options.dtype)).unet
    print(f"{unet.device} {unet.dtype}, {torch.get_num_threads()} threads, {options.side} latents")
    report("as it is", unet, options.side)
    with rows_kept_apart(unet):
        report("rows kept apart", unet, options.side)


def report(name: str, unet: UNet2DConditionModel, side: int) -> None:
    reference = trace(unet, REFERENCE_ROWS, side)
    for rows in ROW_COUNTS:
        differing = compare(trace(unet, rows, side), reference)
        shown = ", ".join(differing[:3]) + (" ..." if len(differing) > 3 else "")
        print(f"{name:>16}  {rows:2} rows: {len(differing):3} layers begin to differ  {shown}")


@torch.no_grad()
def trace(unet: UNet2DConditionModel, rows: int, side: int) -> Lines:
    """The last row's line of each leaf layer's input and output; that row is always the same."""
    generator = torch.Generator().manual_seed(0)
    config = unet.config
    mine = [
        torch.randn(1, config.in_channels, side, side, generator=generator),
        torch.tensor([301.0]),
        torch.randn(1, 77, config.cross_attention_dim, generator=generator),
    ]
    others = [torch.randn(rows - 1, *each.shape[1:], generator=generator) for each in mine]
    sample, timestep, text = (
        torch.cat(pair).to(unet.device) for pair in zip(others, mine, strict=True)
    )
    lines: Lines = {}
    with ExitStack() as stack:
        for name, layer in unet.named_modules():
            if not list(layer.children()):
                stack.enter_context(layer.register_forward_hook(_recorder(lines, name)))
        unet(sample.to(unet.dtype), timestep.abs(), encoder_hidden_states=text.to(unet.dtype))
    return lines


def compare(lines: Lines, reference: Lines) -> list[str]:
    return [
        name
        for name, (given, gave) in lines.items()
        if torch.equal(given, reference[name][0]) and not torch.equal(gave, reference[name][1])
    ]


def _recorder(lines: Lines, name: str) -> Callable[..., None]:
    def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        lines[name] = (inputs[0][-1].clone(), output[-1].clone())

    return record


if __name__ == "__main__":
    main()
