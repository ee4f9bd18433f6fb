"""Layers as the engine runs them: a row's bits whatever the company, and rounded as torch does."""

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from shared.engine.layers import rows_kept_apart

# A layer, and the shape of a row. On processors with AMX torch's own give rows of most of these
# other bits in company.
each_layer = pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(256, 1024), (77,)),
        (nn.Linear(640, 2560), (1,)),
        (nn.Linear(1024, 256, bias=False), (16,)),
        (nn.Conv2d(128, 128, 3, padding=1), (1, 1)),
        (nn.Conv2d(128, 160, 3, padding=1), (2, 2)),
        (nn.Conv2d(128, 128, 3, padding=1, stride=2), (3, 4)),
        (nn.Conv2d(64, 96, 1), (2, 2)),
        (nn.Conv2d(64, 64, 3, padding=2, dilation=2, groups=2), (16, 16)),
    ],
    ids=str,
)


def in_bfloat16(layer: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """The layer and 32 rows of that shape, to which its channels are added."""
    if isinstance(layer, nn.Linear):
        rows = torch.randn(32, *shape, layer.in_features)
    else:
        assert isinstance(layer, nn.Conv2d)
        rows = torch.randn(32, layer.in_channels, *shape)
    return copy.deepcopy(layer).bfloat16(), rows.bfloat16()


@each_layer
@torch.no_grad()
def test_in_bfloat16_a_row_has_the_same_bits_in_any_company(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    layer, rows = in_bfloat16(layer, shape)
    with rows_kept_apart(layer):
        expected = torch.cat([layer(row) for row in rows.split(1)])
        for number in range(2, 33):
            assert torch.equal(layer(rows[-number:]), expected[-number:]), number
    assert "forward" not in vars(layer)


@each_layer
@torch.no_grad()
def test_in_bfloat16_layers_round_no_worse_than_torchs_own(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    rounded, rows = in_bfloat16(layer, shape)
    exact = copy.deepcopy(rounded).float()(rows.float())
    own = (rounded(rows) - exact).norm()
    with rows_kept_apart(rounded):
        assert rounded(rows).shape == exact.shape
        assert (rounded(rows) - exact).norm() < 1.02 * own


def test_layers_that_compute_in_their_own_way_are_left_to_it() -> None:
    class Quantized(nn.Linear):
        """Its weight is not what it multiplies by."""

    wrapped = nn.Linear(4, 4)
    wrapped.forward = lambda lines: lines  # type: ignore[method-assign]
    mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    hooked = Attention(32, cross_attention_dim=32)
    hooked.forward = lambda lines: lines  # type: ignore[method-assign,assignment]
    layers = nn.ModuleList([Quantized(4, 4), wrapped, mirrored, hooked]).bfloat16()
    own = [vars(layer).get("forward") for layer in layers]
    with rows_kept_apart(layers):
        assert [vars(layer).get("forward") for layer in layers] == own


@torch.no_grad()
def test_a_layer_that_a_compiler_casts_to_read_it_is_itself_again_after() -> None:
    layer = nn.Linear(4, 4).bfloat16()
    line = torch.randn(1, 4)
    with rows_kept_apart(layer):
        layer.float()
        read = layer(line)
        layer.bfloat16()
        assert layer(line.bfloat16()).dtype == torch.bfloat16
    assert (layer.float()(line) - read).abs().max() == 0


@pytest.mark.parametrize("side", [8, 33])  # threads share pixels of large pictures
@torch.no_grad()
def test_groups_are_normalised_alike_after_packed_convolutions(side: int) -> None:
    module = nn.Sequential(nn.Conv2d(4, 64, 3, padding=1), nn.GroupNorm(32, 64), nn.SiLU())
    module = module.bfloat16()
    rows = torch.randn(16, 4, side, side).bfloat16()
    own = module(rows)
    with rows_kept_apart(module):
        expected = torch.cat([module(row) for row in rows.split(1)])
        for number in range(2, 17):
            assert torch.equal(module(rows[-number:]), expected[-number:]), number
    assert (expected - own).abs().max() <= 2**-5  # one bit of the largest, which are below 8


class Keys(TorchFunctionMode):
    """The numbers of keys that attention is over."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.numbers.add(args[1].size(-2))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
@torch.no_grad()
def test_text_fills_vectors_and_what_fills_them_is_not_looked_at(
    dtype: torch.dtype, tolerance: float
) -> None:
    layer = Attention(64, cross_attention_dim=32, heads=4, dim_head=16).to(dtype)
    rows, text = torch.randn(9, 81, 64, dtype=dtype), torch.randn(9, 77, 32, dtype=dtype)
    own = layer(rows, text)
    with rows_kept_apart(layer):
        with Keys() as keys:
            expected = layer(rows, text)
            assert keys.numbers == {80}
            layer(rows[:, :16], text)
            assert keys.numbers == {80, 77}  # few queries: it would take longer
        for number in range(2, 9):
            assert torch.equal(layer(rows[-number:], text[-number:]), expected[-number:]), number
        half = torch.zeros(9, 1, 77, dtype=dtype)
        half[..., 40:] = -torch.inf
        masked = layer(rows, text, attention_mask=half)
    assert (expected - own).abs().max() <= tolerance
    assert (masked - layer(rows, text[:, :40])).abs().max() <= tolerance


@pytest.mark.parametrize(
    "does_more",
    [
        {"residual_connection": True},
        {"rescale_output_factor": 2.0},
        {"cross_attention_norm": "layer_norm"},
        {"qk_norm": "layer_norm"},
        {"norm_num_groups": 32},
        {"processor": AttnProcessor()},
    ],
    ids=lambda does_more: next(iter(does_more)),
)
@torch.no_grad()
def test_attention_that_does_more_is_left_as_it_is(does_more: dict[str, Any]) -> None:
    layer = Attention(64, cross_attention_dim=32, **does_more)
    rows, text = torch.randn(2, 81, 64), torch.randn(2, 77, 32)
    own = layer(rows, text)
    with rows_kept_apart(layer):
        assert torch.equal(layer(rows, text), own)


def delicate_values(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """Those that the layer gives another result alone than in a vector; any, if there are none."""
    values = torch.linspace(-6, 6, 4096).to(dtype)
    alone = torch.cat([layer(value.view(1)) for value in values])
    differ = layer(values) != alone
    return values[differ] if differ.any() else values


@pytest.mark.parametrize(
    ("layer", "dtype", "tolerance"),
    [(nn.SiLU(), torch.float32, 1e-6), (nn.GELU(), torch.bfloat16, 2e-5)],  # a bit's worth, there
    ids=str,
)
def test_activations_do_not_depend_on_where_threads_meet(
    layer: nn.Module, dtype: torch.dtype, tolerance: float
) -> None:
    # Rows of a size for which two threads often meet within a vector.
    values = delicate_values(layer, dtype)
    rows = values[torch.randint(len(values), (37, 32, 41, 25))]
    module = nn.ModuleList([layer, nn.Linear(1, 1, dtype=dtype)])  # what is to do depends on both
    with rows_kept_apart(module):
        expected = layer(rows[:1])
        assert all(torch.equal(layer(rows[:n])[:1], expected) for n in range(1, 38))
        whole = layer(rows)
        assert all(torch.equal(layer(rows[n:])[0], whole[n]) for n in range(37))
    assert (layer(rows) - whole).abs().max() < tolerance


def test_fixed_lines_give_a_line_the_same_bits_in_any_number() -> None:
    layer = nn.Linear(320, 1280)
    lines = torch.randn(40, 320)
    with rows_kept_apart(layer):
        expected = layer(lines)
        assert all(torch.equal(layer(lines[:n]), expected[:n]) for n in range(1, 40))
    assert (layer(lines) - expected).abs().max() < 1e-5
    assert "forward" not in vars(layer)
