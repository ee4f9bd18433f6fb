"""Shared forwards: under the row rule, within memory, and without the calls that fail."""

from collections.abc import Hashable, Sequence
from typing import Any

import torch

from shared.config import Compiler, EngineConfig
from shared.engine import step_batch
from shared.engine.compiled import Compilable
from shared.engine.cuda_graphs import GRAPHED_ROWS, forget_graphs
from shared.engine.layers import device_type
from shared.engine.row_invariance import COUNTS, default_rule, find_rule
from shared.engine.row_rule import RowRule
from shared.engine.step_batch import StepCall

# Unlike any size of the arguments beside it, so that it is compiled as a size of its own.
_COMPILED_ROWS = 10


class Forwards:
    """Runs calls that can share a forward, and keeps what it learns of the device doing so."""

    def __init__(self, config: EngineConfig, pixels_per_latent: int) -> None:
        self._config = config
        self._latents_at_once = {
            "denoise": config.max_pixels_per_forward // pixels_per_latent,
            "decode": config.max_pixels_per_decode // pixels_per_latent,
        }
        self._found_rules: dict[Hashable, RowRule] = {}
        self._default_rules: dict[tuple[int, int], RowRule] = {}  # by module and size
        # Latents of a forward, by kind, where memory ran out.
        self.max_latents: dict[str, int] = {}
        self.num_padding_rows = 0
        self.num_bisections = 0

    def run(self, calls: Sequence[StepCall], rule: RowRule) -> list[Any]:
        """Each call's output, or the exception that its own rows raise when run alone.

        `rule` is that of these calls. Raises only torch.AcceleratorError: the device is lost, and
        with it whatever was on it.
        """
        max_rows = self._rows_that_fit(calls[0])
        rows = sum(call.rows for call in calls)
        try:
            outputs = step_batch.forward(calls, rule, max_rows)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            failure = error
        else:
            if calls[0].kind == "denoise" and rows:
                self.num_padding_rows += sum(rule.chunks(rows, max_rows)) - rows
            return outputs
        if free_if_out_of_memory(failure):
            tried = min(rows, max_rows or rows)
            if tried > 1:
                self.max_latents[calls[0].kind] = tried // 2 * calls[0].latents_per_row
                self.num_bisections += 1
                return self.run(calls, rule)
        if len(calls) == 1:
            return [failure]
        self.num_bisections += 1
        half = len(calls) // 2
        return [*self.run(calls[:half], rule), *self.run(calls[half:], rule)]

    def num_detours(self, call: StepCall) -> int:
        """How often forwards took longer than others will: recorded, compared, or cut in half.

        Of all calls' forwards where they were cut, else of those of the call's module.
        """
        method = call.call.method
        num_tries = method.num_tries if isinstance(method, Compilable) else 0
        return num_tries + self.num_bisections

    def compile(self, compiler: Compiler, call: StepCall) -> None:
        """Compile the call's module; what it raises is the compiler's."""
        method = call.call.method
        if isinstance(method, Compilable) and call.kind == "denoise":
            method.compile(compiler, step_batch.copies(call, _COMPILED_ROWS))

    def find_rule(self, call: StepCall) -> RowRule:
        """Search the rule of calls such as this on their device, and keep to it from now on."""
        most = self._latents_at_once[call.kind] // call.latents_per_row
        counts = [count for count in COUNTS if count <= max(2, most)]
        rule = self._found_rules[_scope(call)] = find_rule(call, counts)
        return rule

    def rule_of(self, call: StepCall) -> RowRule:
        """The rule of calls such as this; may search it, which can take many seconds.

        Decodes are under one if several pictures may share a decode, else of their own size.
        """
        known = self._known_rule(call)
        return self.find_rule(call) if known is None else known

    def full_rows(self, call: StepCall, rows: int) -> int:
        """The rows that a forward of `rows` such rows has in the end, with those that fill it up.

        Where their rule has yet to be searched, as many as there are.
        """
        rule = self._known_rule(call) or RowRule()
        return sum(rule.chunks(rows, self._rows_that_fit(call)))

    def _known_rule(self, call: StepCall) -> RowRule | None:
        if not call.rows or (call.kind == "decode" and not self._config.max_pixels_per_decode):
            return RowRule()
        method = call.call.method
        if not self._config.byte_identical:
            is_graphed = isinstance(method, Compilable) and method.is_graphed
            return GRAPHED_ROWS if is_graphed else RowRule()
        if (found := self._found_rules.get(_scope(call))) is not None:
            return found
        if device_type(call.call.module) != "cpu":
            return None
        key = id(call.call.module), call.latents_per_row
        if key not in self._default_rules:
            self._default_rules[key] = default_rule(call)
        return self._default_rules[key]

    def _rows_that_fit(self, call: StepCall) -> int | None:
        """How many rows a forward may hold since one ran out of memory; None if none did."""
        limit = self.max_latents.get(call.kind)
        return None if limit is None or not call.rows else max(1, limit // call.latents_per_row)


def _scope(call: StepCall) -> Hashable:
    """What a rule that was found holds for: on a CPU for all sizes, elsewhere for such calls."""
    module, method = call.call.module, call.call.method
    if device_type(module) == "cpu":
        return id(module)
    return call.key, isinstance(method, Compilable) and method.is_adapted


def free_if_out_of_memory(error: BaseException) -> bool:
    """Whether it says so; then what can be done without is given up."""
    if not (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    ):
        return False
    error.with_traceback(None)  # its frames hold tensors
    forget_graphs()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    return True
