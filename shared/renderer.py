"""The one way from an ImageRequest to a GeneratedImage, whichever door it came through."""

import asyncio
import contextlib
import inspect
import io
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DiffusionPipeline,
)
from PIL import Image

from shared.config import Compiler, EngineConfig, ModelConfig
from shared.counters import EngineCounters, EngineForwards, Priority
from shared.engine import DenoiseEngine, RequestStats, RowRule, Step, Ticket
from shared.errors import Cancelled, DeadlineExceeded, EngineDead, ImageBlocked, RenderFailed
from shared.image_codec import encode
from shared.latent_preview import LatentPreview
from shared.model_files import describe_model, load_noise_schedulers, resolve_folder
from shared.model_profile import ModelProfile
from shared.pipeline import load_pipeline
from shared.prompt_limit import PromptLimit
from shared.request import (
    CanonicalEdit,
    CanonicalRequest,
    Encoding,
    GeneratedImage,
    Progress,
    Provenance,
    Timings,
)

# How often a request that waits hears of its place.
_NEWS_EVERY_S = 1.0


class Renderer:
    """An engine on a loaded checkpoint, fed with canonical requests."""

    def __init__(self, model: ModelConfig, engine: EngineConfig) -> None:
        """Load the checkpoint; raises ModelUnavailable with the reason if that cannot be."""
        self.profile: ModelProfile = describe_model(model)
        folder = resolve_folder(model)
        self._schedulers = load_noise_schedulers(folder)
        self._preview = LatentPreview.load(folder)
        pipeline = self._pipeline = load_pipeline(model)
        self._edit_pipelines: dict[bool, DiffusionPipeline] = {}
        self._dtype = str(pipeline.dtype).removeprefix("torch.")
        self._prompt_limit = PromptLimit(pipeline)
        self._engine = DenoiseEngine(pipeline, engine)
        if engine.compile:
            self.compile(engine.compile)
        if engine.compile and engine.byte_identical and pipeline.device.type == "cpu":
            self.find_row_rules()

    async def render(
        self,
        request: CanonicalRequest,
        encoding: Encoding = Encoding(),  # noqa: B008 - frozen
        *,
        timeout_s: float | None = None,
        priority: Priority = Priority.ONLINE,
    ) -> GeneratedImage:
        """Render one picture; cancelling the caller frees its place at the next step.

        Raises QueueFull, DeadlineExceeded after `timeout_s`, Cancelled, EngineDead, ImageBlocked by
        the checkpoint's safety checker, or RenderFailed with what the pipeline said.
        """
        start = await self._prepare(request)
        ticket = self._submit(request, start, timeout_s, priority)
        return await self._finish(ticket, request, start, encoding)

    async def follow(
        self,
        request: CanonicalRequest,
        encoding: Encoding = Encoding(),  # noqa: B008 - frozen
        *,
        timeout_s: float | None = None,
        priority: Priority = Priority.ONLINE,
        num_previews: int = 0,
    ) -> AsyncGenerator[Progress | GeneratedImage]:
        """As `render`, telling each step on the way, and every second that it still waits.

        Up to `num_previews` of the steps come with a preview, if the model has a map for them.
        """
        steps = _Steps()
        start = await self._prepare(request)
        ticket = self._submit(request, start, timeout_s, priority, steps.put)
        picture = asyncio.create_task(self._finish(ticket, request, start, encoding))
        picture.add_done_callback(steps.end)
        index, num_steps = 0, request.num_inference_steps
        try:
            while True:
                preview = None
                step = await steps.next()
                if picture.done():
                    break
                if step is not None:
                    index, num_steps = step.index, step.num_steps
                    if index in _preview_steps(num_steps, num_previews):
                        preview = await asyncio.to_thread(self._draw_preview, step)
                num_ahead = self._engine.num_ahead(ticket)
                yield Progress(
                    num_ahead=num_ahead, step=index, num_steps=num_steps, preview=preview
                )
            yield picture.result()
        finally:
            picture.cancel()
            await asyncio.wait([picture])

    async def _finish(
        self, ticket: Ticket, request: CanonicalRequest, start: "_Start", encoding: Encoding
    ) -> GeneratedImage:
        try:
            output = await ticket
        except (Cancelled, DeadlineExceeded, EngineDead):
            raise
        except Exception as error:
            raise RenderFailed(f"{type(error).__name__}: {error}") from error
        if any(getattr(output, "nsfw_content_detected", None) or ()):
            raise ImageBlocked("the model's safety checker refused this picture")
        # The encoder is C code without the interpreter's lock: the event loop stays free.
        return await asyncio.to_thread(
            self._encode,
            request,
            encoding,
            start.keep_the_rest(output.images[0]),
            ticket.stats,
            self._tokens_cut(request),  # here: a tokenizer serves one thread at a time
        )

    def _tokens_cut(self, request: CanonicalRequest) -> dict[str, int]:
        prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        cut = {name: self._prompt_limit.num_cut(text) for name, text in prompts.items()}
        return {name: number for name, number in cut.items() if number}

    def warm_up(self) -> None:
        """Render a default picture, so that the first caller does not pay for first calls."""
        request = CanonicalRequest(
            prompt="a", seed=0, **self.profile.defaults.model_dump() | {"num_inference_steps": 2}
        )
        self._submit(request, _Start()).result()

    def compile(self, compiler: Compiler) -> None:
        """Compile the denoiser, by a picture half as wide as usual; raises what that raises."""
        usual, multiple = self.profile.defaults, self.profile.size_multiple
        width = max(multiple, usual.width // 2 // multiple * multiple)
        self._engine.compile(
            compiler, prompt="a", width=width, height=usual.height, num_inference_steps=1
        )

    def find_row_rules(self) -> dict[str, RowRule]:
        """Search which row counts give equal bits here, by the smallest picture."""
        side = -(-self.profile.limits.min_side // self.profile.size_multiple)
        side *= self.profile.size_multiple
        return self._engine.find_row_rules(
            prompt="a", width=side, height=side, num_inference_steps=1
        )

    def counters(self) -> EngineCounters:
        return self._engine.counters()

    def forwards(self) -> EngineForwards:
        return self._engine.forwards()

    def check_alive(self) -> None:
        """Raise EngineDead if nothing will ever be rendered here again."""
        self._engine.check_alive()

    def close(self, *, cancel: bool = False) -> None:
        self._engine.close(cancel=cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self,
        request: CanonicalRequest,
        start: "_Start",
        timeout_s: float | None = None,
        priority: Priority = Priority.ONLINE,
        on_step: Callable[[Step], None] | None = None,
    ) -> Ticket:
        pipeline = self._pipeline
        arguments: dict[str, Any] = {"width": request.width, "height": request.height}
        if isinstance(request, CanonicalEdit):
            pipeline = self._edit_pipeline(has_mask=start.mask is not None)
            taken = inspect.signature(pipeline.__call__).parameters
            arguments |= {"image": start.picture, "mask_image": start.mask}
            arguments |= {"strength": request.strength}
            arguments = {name: value for name, value in arguments.items() if name in taken}
        return self._engine.submit(
            pipeline=pipeline,
            **arguments,
            timeout_s=timeout_s,
            priority=priority,
            on_step=on_step,
            scheduler=self._schedulers[request.scheduler],
            adapters=request.lora,
            prompt=request.prompt,
            # None, not empty: for SDXL the one is no conditioning, the other an empty prompt.
            negative_prompt=request.negative_prompt or None,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            # On the CPU whatever the device, so that a seed means the same noise everywhere.
            generator=torch.Generator("cpu").manual_seed(request.seed),
        )

    async def _prepare(self, request: CanonicalRequest) -> "_Start":
        if not isinstance(request, CanonicalEdit):
            return _Start()
        assert request.source is not None, "an edit to render comes with its picture"
        return _Start(
            *await asyncio.to_thread(request.source.prepared, request.width, request.height)
        )

    def _edit_pipeline(self, *, has_mask: bool) -> DiffusionPipeline:
        """On the same weights."""
        if has_mask not in self._edit_pipelines:
            kind = AutoPipelineForInpainting if has_mask else AutoPipelineForImage2Image
            self._edit_pipelines[has_mask] = kind.from_pipe(self._pipeline)
        return self._edit_pipelines[has_mask]

    def _draw_preview(self, step: Step) -> bytes | None:
        if self._preview is None:
            return None
        buffer = io.BytesIO()
        self._preview.picture(step.denoised[0]).save(buffer, format="png")
        return buffer.getvalue()

    def _encode(
        self,
        request: CanonicalRequest,
        encoding: Encoding,
        image: Image.Image,
        stats: RequestStats,
        tokens_cut: dict[str, int],
    ) -> GeneratedImage:
        provenance = Provenance(
            request=request.model_copy(update={"source": None})
            if isinstance(request, CanonicalEdit)
            else request,
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
            tokens_cut=tokens_cut,
        )


@dataclass(frozen=True)
class _Start:
    """What an edit starts from: its picture, and white where it is to change (None: everywhere)."""

    picture: Image.Image | None = None
    mask: Image.Image | None = None

    def keep_the_rest(self, made: Image.Image) -> Image.Image:
        """`made` inside the mask; outside the picture as it was, which decoding would change."""
        if self.picture is None or self.mask is None:
            return made
        return Image.composite(made, self.picture, self.mask)


class _Steps:
    """The engine's steps, handed from its thread to an event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Step | None] = asyncio.Queue()

    def put(self, step: Step) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, step)

    def end(self, _: Any) -> None:
        self._queue.put_nowait(None)

    async def next(self) -> Step | None:
        """None where none was made for a while, and after the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_NEWS_EVERY_S):
                return await self._queue.get()
        return None


def _preview_steps(num_steps: int, num_previews: int) -> set[int]:
    """So many steps, as evenly spread as can be; the last shows the picture itself."""
    return {round(i * num_steps / (num_previews + 1)) for i in range(1, num_previews + 1)}
