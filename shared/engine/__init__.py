"""Step-level batching of stock diffusers pipelines.

Each request runs the unmodified pipeline in a greenlet of its own. Calls of the denoiser park the
greenlet; the engine's thread gathers parked calls that can share a forward, runs one, and resumes
each owner with its rows. Requests so join and leave at every step, with their own step counts,
guidance, noise schedulers and callbacks, all of it diffusers' own code.

    calls             park and resume                         (greenlets)
    declarations      where a module class takes its rows     (a table)
    step_batch        gather and scatter                      (tensors, no policy)
    row_rule          how many rows a forward may carry       (policy, no tensors)
    layers            rows that keep their bits in company    (wraps a module's layers)
    row_invariance    the search for the row rule             (tensors, no policy)
    compiled          forwards that compilers made            (wraps a module)
    openvino_forward  one of these compilers
    cuda_graphs       forwards that a GPU starts at once      (wraps a forward)
    recorded_forward  forwards that a CPU does without Python (wraps a forward)
    each_core         a forward's rows in parts, a core each  (threads)
    flat_forward      a forward of tensors alone, for what reads one
    step_scheduler    who goes next                           (policy, no tensors)
    waiting_line      who is let in                           (policy, no tensors)
    step_times        how long forwards take                  (policy, no tensors)
    expected_work     what a request will take                (reads arguments)
    under_way         a request, and the call it is parked at (state)
    forecast          who can finish when
    guest_time        how much guests may slow others down    (policy, no tensors)
    guests            what bulk requests have beside online ones
    device_timer      what forwards take                      (no waiting for a GPU)
    forwards          shared forwards: rules, memory, failures
    forward_log       the latest of them, to look at
    totals            sums behind the counters
    pipeline_copies   a pipeline of each request's own
    takeover          which calls of a pipeline park
    adapters          which LoRA adapters are active          (the weights' state)
    prompt_cache      encoded prompts
    tickets           what a caller holds and reads
    engine            the thread
"""

from shared.counters import Priority
from shared.engine.engine import DenoiseEngine
from shared.engine.row_rule import RowRule
from shared.engine.tickets import RequestStats, Step, Ticket

__all__ = [
    "DenoiseEngine",
    "Priority",
    "RequestStats",
    "RowRule",
    "Step",
    "Ticket",
]
