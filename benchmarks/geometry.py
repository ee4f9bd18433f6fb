"""Large models' shapes with random weights through both doors: memory, and what is not the model.

python benchmarks/geometry.py --models sd15 sdxl

UNet, autoencoder and text encoders have the sizes of Stable Diffusion 1.5 and SDXL (the config.json
of stable-diffusion-v1-5/stable-diffusion-v1-5 and of stabilityai/stable-diffusion-xl-base-1.0). The
same requests go through an engine in a process of its own, the service, and a bulk job, by turns.
Engine and service are asked twice, for other prompts, since first forwards are slower: the job
stands beside the engine's first time. Of each the part is told that is neither forward nor decode,
the text encoders with it: that hardly depends on how fast the machine is meanwhile, as what a door
takes beyond the engine does. Seconds are those of a machine clock. With `--num-cpus 1` each side
computes in one thread, and Ray has the other cores.
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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from arguments import add_num_cpus
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from local_service import NUM_GPUS, local_service, ray_folder
from machine_clock import MachineClock
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from batch.output_folder import OutputFolder
from batch.plan import RunSettings, make_plan
from batch.prompts import PromptTable
from batch.render import Job, Workers, metadata_file, render_shards, start_ledger
from jobs.renderers import start_ray
from shared.config import EngineConfig, ModelConfig
from shared.cpu_workers import CPU_WORKER
from shared.model_files import describe_model
from shared.model_names import BUNDLED_MODELS
from shared.renderer import Renderer
from shared.request import CanonicalRequest, GeneratedImage, ImageRequest

Request = dict[str, Any]


class Turn(NamedTuple):
    """Requests from one moment of `perf_counter` to another, with so many seconds in forwards.

    Memory is what the process with the model has of the machine's (not of a GPU's) after them.
    """

    begun_s: float
    ended_s: float
    forwards_s: float
    memory_gb: float

    @property
    def no_forward(self) -> float:
        """A part of the whole, by the wall's clock."""
        return 1 - self.forwards_s / (self.ended_s - self.begun_s)

    def told(self, clock: MachineClock) -> str:
        seconds = clock.between(self.begun_s, self.ended_s)
        no_forward = f"{100 * self.no_forward:.2f} % no forward"
        return f"{seconds:.2f} s ({no_forward}, {self.memory_gb:.2f} GB)"


def main() -> None:
    options = _parse()
    if options.make:
        MODELS[options.make.name]().save_pretrained(options.make)
        return
    if options.engine_of:
        print(json.dumps(asyncio.run(by_engine(options.engine_of, json.loads(options.requests)))))
        return
    with MachineClock() as clock:
        for name in options.models:
            with tempfile.TemporaryDirectory(prefix="sdr-", dir="/tmp") as folder:
                model = Path(folder, name)
                subprocess.run([sys.executable, __file__, f"--make={model}"], check=True)
                compare(model, options, clock)


def compare(model: Path, options: argparse.Namespace, clock: MachineClock) -> None:
    first, second = wanted("at dawn", options), wanted("at dusk", options)
    size = sum(file.stat().st_size for file in model.glob("**/*.safetensors"))
    print(f"{model.name}: {size / 1e9:.2f} GB of weights, {len(first)} x {options.steps} steps")
    rounds = []
    for _ in range(options.rounds):
        cold, warm = in_engine(model, [first, second], options.num_cpus)
        turns = {
            "engine": cold,
            "engine, once it is warm": warm,
            "service": in_service(model, [first, second], options.num_cpus),
            "bulk job": in_job(model, first, options.num_cpus),
        }
        print("; ".join(f"{name} {turn.told(clock)}" for name, turn in turns.items()), flush=True)
        rounds.append(turns)
    for name in rounds[0]:
        no_forward = statistics.median(turns[name].no_forward for turns in rounds)
        print(f"{model.name}: {name} {100 * no_forward:.2f} % no forward (median)")


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


def in_engine(model: Path, turns: list[list[Request]], num_cpus: int) -> list[Turn]:
    """In a process of its own: what it takes would be missing here."""
    command = [sys.executable, __file__, f"--engine-of={model}", f"--requests={json.dumps(turns)}"]
    environment = os.environ | CPU_WORKER | {"OMP_NUM_THREADS": str(num_cpus)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return [Turn(*each) for each in json.loads(done.stdout.splitlines()[-1])]


async def by_engine(model: Path, turns: list[list[Request]]) -> list[Turn]:
    """The requests of each turn, the first in an engine that has done nothing yet."""
    with Renderer(ModelConfig(name=str(model)), EngineConfig()) as renderer:
        done = []
        for turn in turns:
            requests = [
                renderer.profile.canonical(ImageRequest(**each), seed=each["seed"]) for each in turn
            ]
            before_s, begun_s = renderer.counters().busy_s, time.perf_counter()
            await asyncio.gather(*map(renderer.render, requests))
            ended_s = time.perf_counter()
            forwards_s = renderer.counters().busy_s - before_s
            done.append(Turn(begun_s, ended_s, forwards_s, memory_gb(psutil.Process())))
        return done


def in_service(model: Path, turns: list[list[Request]], num_cpus: int) -> Turn:
    """The last, from its first request to the last answer."""
    with local_service(model={"name": str(model)}, num_cpus=num_cpus) as service:

        def ask(request: Request) -> None:
            httpx.post(f"{service.url}/imagine", json=request, timeout=None).raise_for_status()

        def forwards_s() -> float:
            return float(httpx.get(f"{service.url}/stats").json()["busy_s"])

        for turn in turns:
            before_s, begun_s = forwards_s(), time.perf_counter()
            with ThreadPoolExecutor(len(turn)) as callers:
                list(callers.map(ask, turn))
            ended_s = time.perf_counter()
        (generator,) = service.processes("Generator")
        return Turn(begun_s, ended_s, forwards_s() - before_s, memory_gb(generator))


class TellingRenderer(Renderer):
    """Of a job: after each picture it writes into a file what it has done since its first."""

    def __init__(self, model: ModelConfig, engine: EngineConfig, file: Path) -> None:
        super().__init__(model, engine)
        self._file = file
        self._begun_s: float | None = None

    async def render(self, request: CanonicalRequest, *args: Any, **kwargs: Any) -> GeneratedImage:
        self._begun_s = self._begun_s or time.perf_counter()
        image = await super().render(request, *args, **kwargs)
        memory = memory_gb(psutil.Process())
        done = Turn(self._begun_s, time.perf_counter(), self.counters().busy_s, memory)
        self._file.write_text(json.dumps(done))
        return image


def in_job(model: Path, requests: list[Request], num_cpus: int) -> Turn:
    """From where the engine was given the first picture to where all were committed."""
    config = ModelConfig(name=str(model))
    with ray_folder() as name:
        source, told = Path(name, "prompts.parquet"), Path(name, "told.json")
        pq.write_table(pa.Table.from_pylist(requests), source)
        table, output = PromptTable(str(source)), OutputFolder(f"{name}/out")
        settings = RunSettings(
            input_files=table.files(),
            model=describe_model(config),
            dtype="auto",
            seed=0,
            shard_rows=len(requests),
        )
        (shard,) = make_plan(table, output, settings).shards
        start_ray()
        assert num_cpus <= ray.cluster_resources()["CPU"], "fewer are this container's: --num-cpus"
        engine = partial(TellingRenderer, config, EngineConfig(), told)
        job = Job(output.location, settings.format, engine)
        workers = Workers(concurrency=1, num_cpus=num_cpus, num_gpus=NUM_GPUS)
        next(render_shards([shard], job, workers, start_ledger()))
        ended_s = time.perf_counter()
        ray.shutdown()
        rows = output.read_table(metadata_file(shard)).to_pylist()
        assert {row["status"] for row in rows} == {"ok"}, rows
        return Turn(*json.loads(told.read_text()))._replace(ended_s=ended_s)


def memory_gb(process: psutil.Process) -> float:
    return float(process.memory_info().rss / 1e9)


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
    add_num_cpus(parser, "for each side")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--engine-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--requests", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
