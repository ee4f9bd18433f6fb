"""A planned run for the bulk door's tests, and a renderer that costs next to nothing."""

import asyncio
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from batch.ledger import Ledger
from batch.output_folder import OutputFolder
from batch.plan import Plan, RunSettings, make_plan
from batch.prompts import PromptTable
from batch.render import Job, ShardRenderer
from shared.config import ModelConfig
from shared.image_codec import encode
from shared.model_profile import ModelProfile
from shared.request import CanonicalRequest, GeneratedImage, Provenance, Timings

REQUEST = CanonicalRequest(
    prompt="a",
    width=64,
    height=64,
    num_inference_steps=4,
    guidance_scale=4,
    scheduler="DDIMScheduler",
    seed=3,
)
MALFORMED: list[dict[str, Any]] = [
    {"prompt": None},
    {"prompt": " \n"},
    {"prompt": "x" * 4001},
    {"width": 100},
    {"height": 4096},
    {"num_inference_steps": 0},
    {"num_inference_steps": 151},
    {"guidance_scale": -1.0},
    {"scheduler": "NoScheduler"},
    {"lora": "ink:heavy"},
]


def a_thousand_rows() -> dict[str, list[Any]]:
    """Columns of small pictures, each fifth row malformed in the next way."""
    fine = {"prompt": "a lake", "width": 64, "height": 64, "num_inference_steps": 4}
    rows = [fine | (MALFORMED[i // 5 % 10] if i % 5 == 0 else {}) for i in range(1000)]
    names = {name for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in names}


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.png")}


def plan_run(
    folder: Path, columns: dict[str, Any], output: str | None = None, **settings: Any
) -> tuple[Plan, OutputFolder]:
    """A plan of these columns of small pictures, in shards of two."""
    number = len(columns["prompt"])
    small = {"width": [64] * number, "height": [64] * number, "num_inference_steps": [4] * number}
    source = folder / "prompts.parquet"
    pq.write_table(pa.table(small | columns), source)
    prompts = PromptTable(str(source))
    into = OutputFolder(output or str(folder / "out"))
    run = RunSettings(
        input_files=prompts.files(),
        model=bundled_profile(),
        **{"dtype": "auto", "seed": 0, "shard_rows": 2} | settings,
    )
    return make_plan(prompts, into, run), into


@cache
def bundled_profile() -> ModelProfile:
    from shared.model_files import (
        describe_model,
    )  # seconds: processes that are given one do without

    return describe_model(ModelConfig())


class PlainRenderer:
    """Its pictures are of one colour, that of their seed."""

    def __init__(self, profile: ModelProfile | None = None) -> None:
        self.profile = profile or bundled_profile()
        self.rendered: list[str] = []

    async def render(self, request: CanonicalRequest) -> GeneratedImage:
        self.rendered.append(request.prompt)
        if request.prompt == "fail <this>":
            raise RuntimeError("no <luck>")
        if request.prompt == "die":
            os._exit(7)
        provenance = Provenance(
            request=request,
            model=self.profile.name,
            model_fingerprint=self.profile.fingerprint,
            dtype="float32",
        )
        colour = tuple((request.seed % 2**24).to_bytes(3))
        picture = Image.new("RGB", (request.width, request.height), colour)
        return GeneratedImage(
            data=encode(picture, provenance),
            format="png",
            provenance=provenance,
            timings=Timings(
                queue_s=0, render_s=0, encode_s=0, num_forwards=1, num_shared_forwards=0
            ),
        )


def render(
    plan: Plan,
    output: OutputFolder,
    shards: list[str],
    make_renderer: Callable[[], Any] = PlainRenderer,
    *,
    ledger: Ledger | None = None,
    retry_failed: bool = False,
) -> None:
    """Render these shards in this process."""
    job = Job(output.location, plan.settings.format, make_renderer, retry_failed)

    async def render_all() -> None:
        renderer = ShardRenderer(job, ledger or Ledger())
        await asyncio.gather(*map(renderer.render, shards))

    asyncio.run(render_all())
