"""A byte-level BPE in CLIP's own layout, so that any text can be read and every tool loads it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .captions import all_words, caption, made_up_word
from .scenes import sample_scene

_MERGES = 800  # enough that each word of the grammar is one token
_END_OF_WORD = "</w>"
_LENGTH = 77  # tokens of a prompt, as CLIP's


def train_tokenizer(folder: Path, seed: int = 0) -> CLIPTokenizer:
    """Learn the merges from captions, and save the tokenizer to `folder`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix=_END_OF_WORD))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=_MERGES + 2 * len(alphabet),
        min_frequency=2,
        end_of_word_suffix=_END_OF_WORD,
        show_progress=False,
    )
    learner.train_from_iterator(_texts(Random(seed)), trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]][:_MERGES]
    tokens = [*alphabet, *(byte + _END_OF_WORD for byte in alphabet)]
    tokens += [left + right for left, right in merges]
    # Two merges can make one token.
    vocabulary = {
        token: number
        for number, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    }
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=_LENGTH, pad_token="<|endoftext|>"
    )
    save_tokenizer(tokenizer, folder)
    return tokenizer


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """With vocab.json and merges.txt, which older readers want."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def _texts(chance: Random) -> Iterator[str]:
    for _ in range(20_000):
        yield _split(caption(sample_scene(chance), chance, empty=0))
        yield made_up_word(chance)
    for phrase in all_words():
        yield from [_split(phrase)] * 20


def _split(text: str) -> str:
    """Words, digits and signs apart, as CLIP's tokenizer sees them."""
    return " ".join(re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]+", text.lower()))
