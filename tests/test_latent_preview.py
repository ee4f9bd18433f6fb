from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from shared.config import ModelConfig
from shared.engine import DenoiseEngine, Step
from shared.errors import ModelUnavailable
from shared.latent_preview import PREVIEW_FILE, LatentPreview
from shared.model_files import resolve_folder
from tests.rendering import arguments


def test_the_last_preview_looks_like_the_picture(pipeline: DiffusionPipeline) -> None:
    preview = LatentPreview.load(resolve_folder(ModelConfig()))
    assert preview is not None
    steps: list[Step] = []
    with DenoiseEngine(pipeline) as engine:
        asked = arguments(0, width=128, height=128, num_inference_steps=20, output_type="pil")
        picture = engine.submit(**asked, on_step=steps.append).result(timeout=120).images[0]
    small = np.asarray(picture.reduce(8)) / 255

    def distance(step: Step) -> float:
        made = preview.picture(step.latents[0])
        assert made.size == (16, 16)
        return float(np.abs(np.asarray(made) / 255 - small).mean())

    assert distance(steps[-1]) < 0.12
    assert distance(steps[-1]) < 0.6 * distance(steps[0])


def test_a_linear_map_is_found_again() -> None:
    wanted = LatentPreview(weights=((0.1, 0.2), (-0.1, 0.0), (0.05, -0.2)), bias=(0.5, 0.4, 0.6))
    latents = [torch.rand(2, 8, 8) for _ in range(3)]
    found = LatentPreview.fit(latents, [wanted.colours(each) for each in latents])
    assert np.allclose(found.weights, wanted.weights, atol=1e-4)
    assert np.allclose(found.bias, wanted.bias, atol=1e-4)


def test_a_model_may_have_none(tmp_path: Path) -> None:
    assert LatentPreview.load(tmp_path) is None


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / PREVIEW_FILE).write_text('{"weights": 3}')
    with pytest.raises(ModelUnavailable, match=PREVIEW_FILE):
        LatentPreview.load(tmp_path)
