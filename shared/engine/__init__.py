"""Step-level batching of stock diffusers pipelines.

Each request runs the unmodified pipeline in a greenlet of its own. Calls of the denoiser park the
greenlet; the engine's thread gathers parked calls that can share a forward, runs one, and resumes
each owner with its rows. Requests so join and leave at every step, with their own step counts,
guidance, noise schedulers and callbacks, all of it diffusers' own code.

    calls           park and resume            (greenlets)
    step_batch      gather and scatter         (tensors, no policy)
    step_scheduler  who goes next              (policy, no tensors)
    engine          the thread and the tickets
"""

from shared.engine.engine import DenoiseEngine, EngineCounters, RequestStats, Ticket

__all__ = ["DenoiseEngine", "EngineCounters", "RequestStats", "Ticket"]
