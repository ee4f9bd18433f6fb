"""What people would use instead of this service: each on the same weights, threads and settings.

python benchmarks/alternatives.py threads --port 8100
python benchmarks/alternatives.py template --backend openvino --port 8100
OMP_NUM_THREADS=1 python benchmarks/alternatives.py litserve --workers 2

All answer POST /imagine as the service does. compare.py starts them by turns.
"""

import argparse
import asyncio
import copy
import io
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

os.environ |= {"RAY_AUTH_MODE": "disabled", "TRANSFORMERS_VERBOSITY": "error"}

import litserve as ls
import torch
import uvicorn
from diffusers import DiffusionPipeline
from fastapi import FastAPI, Response

from shared.config import ModelConfig
from shared.cpu_workers import CPU_WORKER
from shared.pipeline import load_pipeline

# How long a batch waits to be full is left to the libraries.
MAX_BATCH = 16
_NUM_CPUS = os.cpu_count() or 1


@dataclass(frozen=True)
class Wanted:
    prompt: str
    width: int = 256
    height: int = 256
    num_inference_steps: int = 20
    guidance_scale: float = 4.0
    seed: int = 0
    n: int = 1

    def alike(self) -> tuple[Any, ...]:
        """What has to be equal for one call of the pipeline."""
        return (self.width, self.height, self.num_inference_steps, self.guidance_scale)


class Model:
    """A pipeline that is called as diffusers' documentation does."""

    def __init__(self) -> None:
        name = os.environ.get("BENCHMARK_MODEL", "postcard")
        dtype = os.environ.get("BENCHMARK_DTYPE", "auto")
        self.pipeline = load_pipeline(ModelConfig(name=name, dtype=dtype))  # type: ignore[arg-type]
        self.pipeline.set_progress_bar_config(disable=True)
        BACKENDS[os.environ.get("BENCHMARK_BACKEND", "eager")](self.pipeline)

    def one(self, wanted: Wanted) -> bytes:
        return self.many([wanted])[0]

    def many(self, batch: Sequence[Wanted]) -> list[bytes]:
        """One call for those that are alike, one after another for the rest."""
        made: dict[int, bytes] = {}
        in_order = sorted(enumerate(batch), key=lambda each: each[1].alike())
        for _, group in itertools.groupby(in_order, key=lambda each: each[1].alike()):
            numbers, same = zip(*group, strict=True)
            made |= zip(numbers, rendered(self.pipeline, same), strict=True)
        return [made[number] for number in range(len(batch))]


def rendered(pipeline: DiffusionPipeline, same: Sequence[Wanted]) -> list[bytes]:
    """The pictures of each that is wanted, one after another."""
    first = same[0]
    images = pipeline(
        prompt=[each.prompt for each in same for _ in range(each.n)],
        width=first.width,
        height=first.height,
        num_inference_steps=first.num_inference_steps,
        guidance_scale=first.guidance_scale,
        generator=[
            torch.Generator().manual_seed(each.seed + i) for each in same for i in range(each.n)
        ],
    ).images
    left = iter(images)
    return [b"".join(png(next(left)) for _ in range(each.n)) for each in same]


def png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()


def answer(data: bytes) -> Response:
    return Response(data, media_type="image/png")


def template(port: int, workers: int) -> None:
    """Ray's and Anyscale's template: an ingress, and a replica that renders one after another.

    Others wait in the replica: Serve's router would ask it again up to half a second after it is
    free.
    """
    from ray import serve

    @serve.deployment(**_replicas(workers))
    class StableDiffusion(Model):
        def __init__(self) -> None:
            super().__init__()
            self._turn = threading.Lock()  # Serve runs a plain method in threads

        def generate(self, wanted: Wanted) -> bytes:
            with self._turn:
                return self.one(wanted)

    _serve_with_ray(StableDiffusion, port)


def serve_batch(port: int, workers: int) -> None:
    """Ray Serve's own batching around the pipeline's list of prompts."""
    from ray import serve

    @serve.deployment(**_replicas(workers))
    class StableDiffusion(Model):
        @serve.batch(max_batch_size=MAX_BATCH)
        async def generate(self, batch: list[Wanted]) -> list[bytes]:
            return await asyncio.to_thread(self.many, batch)

    _serve_with_ray(StableDiffusion, port)


class StableDiffusionAPI(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Model()

    def decode_request(self, request: Wanted) -> Wanted:
        return request

    def predict(self, batch: list[Wanted]) -> list[bytes]:
        return self.model.many(batch)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return answer(output)


def litserve(port: int, workers: int) -> None:
    """LitServe with its batching."""
    api = StableDiffusionAPI(max_batch_size=MAX_BATCH, api_path="/imagine")
    server = ls.LitServer(
        api, accelerator="auto", devices=1, workers_per_device=workers, timeout=600
    )
    server.run(host="127.0.0.1", port=port, generate_client_file=False, num_api_servers=1)


def threads(port: int, workers: int) -> None:
    """Threads over one pipeline's modules, each request with a noise scheduler of its own.

    As diffusers' example of an asynchronous server.
    """
    model = Model()
    pool = ThreadPoolExecutor(workers if workers > 1 else 4)
    copying = threading.Lock()
    app = FastAPI()

    def render(wanted: Wanted) -> bytes:
        with copying:
            scheduler = copy.deepcopy(model.pipeline.scheduler)
            pipeline = type(model.pipeline).from_pipe(model.pipeline, scheduler=scheduler)
            pipeline.set_progress_bar_config(disable=True)
        return rendered(pipeline, [wanted])[0]

    @app.post("/imagine")
    async def imagine(wanted: Wanted) -> Response:
        return answer(await asyncio.get_running_loop().run_in_executor(pool, render, wanted))

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def _replicas(workers: int) -> dict[str, Any]:
    return {
        "num_replicas": workers,
        "max_ongoing_requests": 256,
        "ray_actor_options": {
            "num_cpus": _NUM_CPUS / workers,
            "num_gpus": int(torch.cuda.is_available()) / workers,
            "runtime_env": {"env_vars": CPU_WORKER},
        },
    }


def _serve_with_ray(deployment: Any, port: int) -> None:
    import ray
    from ray import serve

    app = FastAPI()

    @serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
    @serve.ingress(app)
    class Ingress:
        def __init__(self, model: Any) -> None:
            self._model = model

        @app.post("/imagine")
        async def imagine(self, wanted: Wanted) -> Response:
            return answer(await self._model.generate.remote(wanted))

    ray.init(address="local", num_cpus=_NUM_CPUS, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Ingress.bind(deployment.bind()))
    threading.Event().wait()


def compiled(pipeline: DiffusionPipeline) -> None:
    """As diffusers' documentation compiles, but for all sizes at once."""
    pipeline.unet.compile(dynamic=True)


def openvino(pipeline: DiffusionPipeline) -> None:
    """UNet and decoder converted and compiled by OpenVINO, which people without a GPU choose."""
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if pipeline.dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }

    def converted(module: torch.nn.Module, *example: torch.Tensor) -> Callable[..., torch.Tensor]:
        model = ov.convert_model(module.float(), example_input=example)
        run = ov.Core().compile_model(model, "CPU", settings)
        return lambda *inputs: torch.from_numpy(run([x.float().numpy() for x in inputs])[0])

    class Unet(torch.nn.Module):
        def forward(self, sample: Any, timestep: Any, text: Any) -> Any:
            return own(sample, timestep, text, return_dict=False)[0]

    unet, vae, dtype = pipeline.unet, pipeline.vae, pipeline.dtype
    own, latents = unet.forward, torch.randn(2, 4, 16, 24)
    text = torch.randn(2, 77, unet.config.cross_attention_dim)
    wrapped = Unet()
    wrapped.unet = unet
    denoise = converted(wrapped, latents, torch.ones(2), text)
    decode = converted(vae.decoder, latents)
    unet.forward = lambda sample, timestep, encoder_hidden_states, **_: (
        denoise(sample, timestep.expand(len(sample)), encoder_hidden_states).to(dtype),
    )
    vae.decoder.forward = lambda latents, *_: decode(latents).to(dtype)
    unet.to(dtype)
    vae.to(dtype)


BACKENDS: dict[str, Callable[[DiffusionPipeline], None]] = {
    "eager": lambda pipeline: None,
    "compile": compiled,
    "openvino": openvino,
}
ALTERNATIVES: dict[str, Callable[[int, int], None]] = {
    "template": template,
    "serve-batch": serve_batch,
    "litserve": litserve,
    "threads": threads,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=ALTERNATIVES)
    parser.add_argument("--port", type=int, default=8100, help="(%(default)s)")
    parser.add_argument("--backend", choices=BACKENDS, default="eager", help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="that share the cores (%(default)s)")
    options = parser.parse_args()
    os.environ["BENCHMARK_BACKEND"] = options.backend  # replicas and workers inherit it
    ALTERNATIVES[options.name](options.port, options.workers)


if __name__ == "__main__":
    import alternatives  # so that Ray's workers import what is here, and need not be sent it

    alternatives.main()
