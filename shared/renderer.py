"""The one way from an ImageRequest to a GeneratedImage, whichever door it came through."""

import asyncio
import time
from typing import Self

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from shared.config import EngineConfig, ModelConfig
from shared.engine import DenoiseEngine, EngineCounters, RequestStats, RowRule, Ticket
from shared.errors import Cancelled, DeadlineExceeded, EngineDead, RenderFailed
from shared.image_codec import encode
from shared.model_files import describe_model, load_noise_schedulers, resolve_folder
from shared.model_profile import ModelProfile
from shared.pipeline import load_pipeline
from shared.request import CanonicalRequest, Encoding, GeneratedImage, Provenance, Timings


class Renderer:
    """An engine on a loaded checkpoint, fed with canonical requests."""

    def __init__(self, model: ModelConfig, engine: EngineConfig) -> None:
        """Load the checkpoint; raises ModelUnavailable with the reason if that cannot be."""
        self.profile: ModelProfile = describe_model(model)
        self._schedulers = load_noise_schedulers(resolve_folder(model))
        pipeline: DiffusionPipeline = load_pipeline(model)
        self._dtype = str(pipeline.dtype).removeprefix("torch.")
        self._engine = DenoiseEngine(pipeline, engine)
        if engine.byte_identical and pipeline.device.type != "cpu":
            self.find_row_rules()

    async def render(
        self,
        request: CanonicalRequest,
        encoding: Encoding = Encoding(),  # noqa: B008 - frozen
        *,
        timeout_s: float | None = None,
    ) -> GeneratedImage:
        """Render one picture; cancelling the caller frees its place at the next step.

        Raises QueueFull, DeadlineExceeded after `timeout_s`, Cancelled, EngineDead, or RenderFailed
        with what the pipeline said.
        """
        ticket = self._submit(request, timeout_s)
        try:
            output = await ticket
        except (Cancelled, DeadlineExceeded, EngineDead):
            raise
        except Exception as error:
            raise RenderFailed(f"{type(error).__name__}: {error}") from error
        # The encoder is C code without the interpreter's lock: the event loop stays free.
        image = output.images[0]
        return await asyncio.to_thread(self._encode, request, encoding, image, ticket.stats)

    def warm_up(self) -> None:
        """Render a default picture, so that the first caller does not pay for first calls."""
        request = CanonicalRequest(
            prompt="a", seed=0, **self.profile.defaults.model_dump() | {"num_inference_steps": 2}
        )
        self._submit(request).result()

    def find_row_rules(self) -> dict[str, RowRule]:
        """Search which row counts give equal bits here, for devices that were not measured.

        With the smallest picture: its largest forwards fit into any memory.
        """
        side = -(-self.profile.limits.min_side // self.profile.size_multiple)
        side *= self.profile.size_multiple
        return self._engine.find_row_rules(
            prompt="a", width=side, height=side, num_inference_steps=1
        )

    def counters(self) -> EngineCounters:
        return self._engine.counters()

    def check_alive(self) -> None:
        """Raise EngineDead if nothing will ever be rendered here again."""
        self._engine.check_alive()

    def close(self, *, cancel: bool = False) -> None:
        self._engine.close(cancel=cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, request: CanonicalRequest, timeout_s: float | None = None) -> Ticket:
        return self._engine.submit(
            timeout_s=timeout_s,
            scheduler=self._schedulers[request.scheduler],
            adapters=request.lora,
            prompt=request.prompt,
            # None, not empty: for SDXL the one is no conditioning, the other an empty prompt.
            negative_prompt=request.negative_prompt or None,
            width=request.width,
            height=request.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            # On the CPU whatever the device, so that a seed means the same noise everywhere.
            generator=torch.Generator("cpu").manual_seed(request.seed),
        )

    def _encode(
        self,
        request: CanonicalRequest,
        encoding: Encoding,
        image: Image.Image,
        stats: RequestStats,
    ) -> GeneratedImage:
        provenance = Provenance(
            request=request,
            model=self.profile.name,
            model_fingerprint=self.profile.fingerprint_for(request),
            dtype=self._dtype,
        )
        started = time.perf_counter()
        data = encode(image, provenance, encoding.format, encoding.quality)
        return GeneratedImage(
            data=data,
            format=encoding.format,
            provenance=provenance,
            timings=Timings(
                queue_s=stats.queue_s,
                render_s=stats.run_s,
                encode_s=time.perf_counter() - started,
                num_forwards=stats.num_forwards,
                num_shared_forwards=stats.num_shared_forwards,
            ),
        )
