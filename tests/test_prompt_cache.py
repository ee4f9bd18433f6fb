import pytest
import torch
from torch import Tensor, nn

from shared.engine.calls import PipelineRun
from shared.engine.prompt_cache import PromptCache, caching


class Encoder(nn.Module):
    """Counts its calls; its output takes 40 bytes per line."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
        self.num_calls += 1
        return [input_ids.float().repeat(1, 10)]


def encode_in_run(encoder: Encoder, *ids: int) -> list[list[Tensor]]:
    run = PipelineRun(lambda: [encoder(torch.tensor([[each]])) for each in ids])
    run.start()
    if run.error is not None:
        raise run.error
    encoded: list[list[Tensor]] = run.result
    return encoded


def test_equal_prompts_are_encoded_once() -> None:
    encoder, cache = Encoder(), PromptCache(1000)
    with caching(encoder, cache, lambda _: None):
        first, other, second = encode_in_run(encoder, 1, 2, 1)
    assert first is second
    assert torch.equal(other[0], torch.full((1, 10), 2.0))
    assert encoder.num_calls == 2
    assert (cache.num_hits, cache.num_misses, cache.num_bytes) == (1, 2, 80)


def test_what_the_encoder_was_readied_with_is_part_of_the_key() -> None:
    encoder, cache = Encoder(), PromptCache(1000)
    states = iter(["a", "b", "a"])
    with caching(encoder, cache, lambda _: next(states)):
        encode_in_run(encoder, 1, 1, 1)
    assert encoder.num_calls == 2


def test_the_least_recently_used_goes_first() -> None:
    encoder, cache = Encoder(), PromptCache(100)
    with caching(encoder, cache, lambda _: None):
        encode_in_run(encoder, 1, 2, 1, 3)  # 2 has to go
        assert cache.num_bytes == 80
        encode_in_run(encoder, 1, 3)
        assert encoder.num_calls == 3
        encode_in_run(encoder, 2)
        assert encoder.num_calls == 4


@pytest.mark.parametrize("max_bytes", [0, 39])
def test_what_does_not_fit_is_not_kept(max_bytes: int) -> None:
    encoder, cache = Encoder(), PromptCache(max_bytes)
    with caching(encoder, cache, lambda _: None):
        encode_in_run(encoder, 1, 1)
    assert encoder.num_calls == 2
    assert cache.num_bytes == 0


def test_calls_from_outside_a_run_are_left_alone() -> None:
    encoder, cache = Encoder(), PromptCache(1000)
    with caching(encoder, cache, lambda _: None):
        encoder(torch.tensor([[1]]))
        encoder(torch.tensor([[1]]))
    assert encoder.num_calls == 2
    assert "forward" not in vars(encoder)


def test_an_argument_that_cannot_be_compared_is_never_equal() -> None:
    encoder, cache = Encoder(), PromptCache(1000)

    def encode() -> None:
        encoder(torch.tensor([[1]]), attention_mask=object())

    with caching(encoder, cache, lambda _: None):
        for _ in range(2):
            PipelineRun(encode).start()
    assert encoder.num_calls == 2
