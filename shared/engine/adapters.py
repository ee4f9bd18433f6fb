"""Which LoRA adapters are active: a state of the weights, switched between forwards."""

import time
from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline

# Names and weights, sorted by name: equal sets can share a forward.
AdapterSet = tuple[tuple[str, float], ...]


def adapter_set(weights: Mapping[str, float]) -> AdapterSet:
    """`weights` by adapter name as a set; a weight of 0 is no adapter."""
    return tuple(sorted((name, float(weight)) for name, weight in weights.items() if weight))


def check_scales_nothing(pipeline_kwargs: Mapping[str, Any]) -> None:
    """ValueError where a pipeline's arguments would weigh the adapters of everybody anew."""
    for name in ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"):
        given = pipeline_kwargs.get(name)
        if isinstance(given, Mapping) and "scale" in given:
            raise ValueError(f"{name}: for a scale of its own, give adapters={{name: weight}}")


class Adapters:
    """The adapters that were loaded into a pipeline by diffusers' `load_lora_weights`."""

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self._pipeline = pipeline
        by_module = pipeline.get_list_adapters() if hasattr(pipeline, "get_list_adapters") else {}
        self.names = frozenset(name for names in by_module.values() for name in names)
        self._active: AdapterSet | None = None  # unknown
        self.num_switches = 0

    def are_active(self) -> bool:
        """Whether any is, as far as is known."""
        return bool(self.names) and self._active != ()

    def check(self, wanted: AdapterSet) -> None:
        """ValueError for a name that is not loaded."""
        unknown = [name for name, _ in wanted if name not in self.names]
        if unknown:
            known = ", ".join(sorted(self.names)) or "none"
            raise ValueError(f"adapters: {unknown[0]!r} is not loaded; there are: {known}")

    def activate(self, wanted: AdapterSet) -> float:
        """Make exactly `wanted` active; gives the seconds that it took."""
        if not self.names or wanted == self._active:
            return 0.0
        started = time.perf_counter()
        self._active = None  # should it fail half way
        if wanted:
            self._pipeline.enable_lora()
            self._pipeline.set_adapters([name for name, _ in wanted], [w for _, w in wanted])
        else:
            self._pipeline.disable_lora()
        self._active = wanted
        self.num_switches += 1
        return time.perf_counter() - started
