"""How much of a prompt no text encoder sees: pipelines cut it at their limit and go on."""

import copy
import inspect
from typing import Any

from diffusers import DiffusionPipeline

from shared.engine.pipeline_copies import tokenizers_of


class PromptLimit:
    """Counts with copies of the pipeline's tokenizers: it is called from other threads."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self._tokenizers = [copy.deepcopy(each) for each in tokenizers_of(pipeline).values()]
        parameter = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
        self._max_tokens = parameter.default if parameter else None

    def num_cut(self, text: str) -> int:
        """Tokens of `text` beyond the limit of the encoder that sees the most; 0 if it fits."""
        return min((self._beyond(each, text) for each in self._tokenizers), default=0)

    def _beyond(self, tokenizer: Any, text: str) -> int:
        limit: int = tokenizer.model_max_length
        if self._max_tokens is not None:  # of a pipeline's long encoder; CLIP has its 77 anyway
            limit = min(limit, self._max_tokens)
        return max(0, len(tokenizer(text, truncation=False, verbose=False).input_ids) - limit)
