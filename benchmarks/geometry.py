"""Large models' shapes with random weights through both doors: memory, and what is not the model.

python benchmarks/geometry.py --models sd15 sdxl

UNet, autoencoder and text encoders have the sizes of Stable Diffusion 1.5 and SDXL (the config.json
of stable-diffusion-v1-5/stable-diffusion-v1-5 and of stabilityai/stable-diffusion-xl-base-1.0). The
same requests go through an engine in a process of its own, the service, and the bulk job, by turns;
what a door takes beyond the engine is its overhead. Engine and service are asked twice, for other
prompts, since first forwards are slower: the job stands beside the engine's first time. Memory is
that of the process with the model: the service's after its requests, the job's at its most, looked
at each second. Seconds are those of a machine clock. With `--num-cpus 1` each side computes in one
thread, and Ray has the other cores.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from local_service import NUM_CPUS, local_service
from machine_clock import MachineClock, by_perf_counter
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from shared.cpu_workers import CPU_WORKER
from shared.model_names import BUNDLED_MODELS

Request = dict[str, Any]


class Span(NamedTuple):
    """Two moments of `perf_counter`."""

    begun_s: float
    ended_s: float


def main() -> None:
    options = _parse()
    if options.make:
        MODELS[options.make.name]().save_pretrained(options.make)
        return
    if options.engine_of:
        print(json.dumps(asyncio.run(in_engine(options.engine_of, json.loads(options.requests)))))
        return
    with MachineClock() as clock:
        for name in options.models:
            with tempfile.TemporaryDirectory(prefix="sdr-", dir="/tmp") as folder:
                model = Path(folder, name)
                # In a process of its own: what it takes would be missing here.
                subprocess.run([sys.executable, __file__, f"--make={model}"], check=True)
                compare(model, options, clock)


def compare(model: Path, options: argparse.Namespace, clock: MachineClock) -> None:
    first, second = wanted("at dawn", options), wanted("at dusk", options)
    size = sum(file.stat().st_size for file in model.glob("**/*.safetensors"))
    print(f"{model.name}: {size / 1e9:.2f} GB of weights, {len(first)} x {options.steps} steps")
    overheads: dict[str, list[float]] = {"service": [], "bulk job": []}
    for _ in range(options.rounds):
        spans = in_engine_alone(model, [first, second], options.num_cpus)
        cold, warm = (clock.between(*span) for span in spans)
        with local_service(model={"name": str(model)}, num_cpus=options.num_cpus) as service:
            in_service(service.url, first)
            span, forwards_s = in_service(service.url, second)
            (generator,) = service.processes("Generator")
            memory = generator.memory_info().rss / 1e9
        door, no_forward = clock.between(*span), 1 - forwards_s / (span.ended_s - span.begun_s)
        span, job_memory = in_job(model, first, options.num_cpus)
        job = clock.between(*span)
        print(
            f"engine {cold:.2f} s, once it is warm {warm:.2f} s, "
            f"service {door:.2f} s ({memory:.2f} GB; {100 * no_forward:.2f} % of it no forward), "
            f"bulk job {job:.2f} s ({job_memory:.2f} GB)",
            flush=True,
        )
        overheads["service"].append(door / warm - 1)
        overheads["bulk job"].append(job / cold - 1)
    for name, each in overheads.items():
        print(f"{model.name}: {name} {100 * statistics.median(each):+.2f} % beyond the engine")


def wanted(when: str, options: argparse.Namespace) -> list[Request]:
    return [
        {
            "prompt": f"twin peaks {i} {when}",
            "seed": i,
            "width": options.size,
            "height": options.size,
            "num_inference_steps": options.steps,
        }
        for i in range(options.pictures)
    ]


def in_engine_alone(model: Path, turns: list[list[Request]], num_cpus: int) -> list[Span]:
    command = [sys.executable, __file__, f"--engine-of={model}", f"--requests={json.dumps(turns)}"]
    environment = os.environ | CPU_WORKER | {"OMP_NUM_THREADS": str(num_cpus)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return [Span(*each) for each in json.loads(done.stdout.splitlines()[-1])]


async def in_engine(model: Path, turns: list[list[Request]]) -> list[Span]:
    """The requests of each turn, the first in an engine that has done nothing yet."""
    from shared.config import EngineConfig, ModelConfig
    from shared.renderer import Renderer
    from shared.request import ImageRequest

    with Renderer(ModelConfig(name=str(model)), EngineConfig()) as renderer:
        spans = []
        for turn in turns:
            requests = [
                renderer.profile.canonical(ImageRequest(**each), seed=each["seed"]) for each in turn
            ]
            begun_s = time.perf_counter()
            await asyncio.gather(*map(renderer.render, requests))
            spans.append(Span(begun_s, time.perf_counter()))
        return spans


def in_service(url: str, requests: list[Request]) -> tuple[Span, float]:
    """From the first request to the last answer, and the wall's seconds in forwards meanwhile."""

    def ask(request: Request) -> None:
        httpx.post(f"{url}/imagine", json=request, timeout=None).raise_for_status()

    def forwards_s() -> float:
        return float(httpx.get(f"{url}/stats").json()["busy_s"])

    before_s, begun_s = forwards_s(), time.perf_counter()
    with ThreadPoolExecutor(len(requests)) as callers:
        list(callers.map(ask, requests))
    return Span(begun_s, time.perf_counter()), forwards_s() - before_s


def in_job(model: Path, requests: list[Request], num_cpus: int) -> tuple[Span, float]:
    """From where the engine was given the first picture to where the last was written; GB."""
    with tempfile.TemporaryDirectory(prefix="sdr-", dir="/tmp") as name:
        folder = Path(name)
        pq.write_table(pa.Table.from_pylist(requests), folder / "prompts.parquet")
        command = [sys.executable, "-m", "jobs.render", f"--model={model}"]
        command += [f"--num-cpus={num_cpus}"]
        command += [f"--input={folder / 'prompts.parquet'}", f"--output={folder / 'out'}"]
        environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": name}
        log = folder / "log"
        with log.open("w") as lines:
            job = subprocess.Popen(command, env=environment, stdout=lines, stderr=lines)
        memory = 0.0
        try:
            while job.poll() is None:
                memory = max(memory, largest_process(job.pid))
                time.sleep(1)
        finally:
            job.terminate()
            job.wait()
        assert not job.returncode, log.read_text()
        rows = pq.read_table(folder / "out" / "metadata").to_pylist()
    ends_s = [by_perf_counter(row["finished_at"]) for row in rows]
    begins_s = [
        end_s - row["queue_s"] - row["render_s"] - row["encode_s"]
        for end_s, row in zip(ends_s, rows, strict=True)
    ]
    return Span(min(begins_s), max(ends_s)), memory / 1e9


def largest_process(pid: int) -> float:
    """Bytes of the one with the most memory among those that it has started."""
    sizes = [0.0]
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            sizes.append(process.memory_info().rss)
    return max(sizes)


def sd15() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        unet=_random(lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768)),
        **_common(),
        safety_checker=None,
        feature_extractor=None,
    )


def sdxl() -> StableDiffusionXLPipeline:
    common = _common()
    big_g = CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
        hidden_act="gelu",
    )
    unet = _random(
        lambda: UNet2DConditionModel(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        )
    )
    return StableDiffusionXLPipeline(
        unet=unet,
        text_encoder_2=_random(lambda: CLIPTextModelWithProjection(big_g)),
        tokenizer_2=common["tokenizer"],
        **common,
    )


def _common() -> dict[str, Any]:
    vae = _random(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=512,
        )
    )
    clip_l = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
    )
    return {
        "vae": vae,
        "text_encoder": _random(lambda: CLIPTextModel(clip_l)),
        "tokenizer": CLIPTokenizer.from_pretrained(BUNDLED_MODELS / "postcard" / "tokenizer"),
        "scheduler": EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
    }


def _random(make: Callable[[], nn.Module]) -> nn.Module:
    """In bfloat16, with weights that keep what passes through them finite."""
    with init_empty_weights():
        module = make()
    for name, weight in list(module.named_parameters()):
        if weight.ndim > 1:
            value = torch.randn(weight.shape, dtype=torch.bfloat16) / weight[0].numel() ** 0.5
        else:
            value = torch.full(weight.shape, float(name.endswith("weight")), dtype=torch.bfloat16)
        set_module_tensor_to_device(module, name, "cpu", value, dtype=torch.bfloat16)
    return module.eval()


MODELS: dict[str, Callable[[], DiffusionPipeline]] = {"sd15": sd15, "sdxl": sdxl}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["sd15"])
    parser.add_argument("--size", type=int, default=512, help="pixels a side (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--pictures", type=int, default=1, help="at once (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument(
        "--num-cpus", type=int, default=NUM_CPUS, help="for each side (%(default)s)"
    )
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--engine-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--requests", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
