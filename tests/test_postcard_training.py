"""The training code of the bundled model: what it draws and says, and that it goes on."""

import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from models.postcard.training.autoencoder import crops, encode, new_autoencoder, scale_latents
from models.postcard.training.captions import all_words, caption, full_caption
from models.postcard.training.evaluation import CHOICES, Classifier, judge
from models.postcard.training.machine import made_ahead
from models.postcard.training.scenes import STYLES, Scene, Thing, sample_scene
from models.postcard.training.styles import draw, paint, things_mask
from models.postcard.training.tokenizer import train_tokenizer
from models.postcard.training.trainer import Schedule, train
from shared.config import ModelConfig
from shared.pipeline import load_pipeline
from tests.conftest import REPO

SIZES = [(128, 128), (256, 192), (192, 256), (640, 640)]


def scene_in(style: str, *things: Thing) -> Scene:
    return Scene(style, "night", "sea", "twin peaks", "snow", things, True, False, True)


@pytest.mark.parametrize("style", [*STYLES, "blueprint", "gold"])
def test_every_style_paints_every_size(style: str) -> None:
    scene = scene_in(style, Thing("boat", "red"), Thing("lighthouse", "white"))
    for width, height in SIZES:
        picture = paint(scene, Random(1), width, height)
        assert (picture.mode, picture.size) == ("RGB", (width, height))
        assert np.asarray(picture).std() > 10


def test_a_seed_is_one_scene_in_every_size() -> None:
    for seed in range(12):
        large, scene = draw(seed, 256, 256)
        again, _ = draw(seed, 256, 256)
        small, same_scene = draw(seed, 128, 128)
        assert (large.tobytes(), scene) == (again.tobytes(), same_scene)
        apart = np.asarray(large.resize((16, 16), Image.Resampling.BOX), dtype=float)
        apart -= np.asarray(small.resize((16, 16), Image.Resampling.BOX), dtype=float)
        assert np.abs(apart).mean() < 12


def test_objects_are_where_their_mask_is() -> None:
    seeds = [seed for seed in range(300) if sample_scene(Random(seed)).style == "flat"]
    for seed in seeds[:30]:
        mask = np.asarray(things_mask(seed, 128, 128)) > 0
        assert mask.any() == bool(sample_scene(Random(seed)).things)


def test_a_full_caption_names_everything() -> None:
    scene = scene_in("neon", Thing("house", "pink"), Thing("tree", "green"))
    words = full_caption(scene, Random(0))
    assert words.count(",") == 5
    assert "pink" in words
    assert "green" not in words
    assert caption(scene, Random(0), empty=1.0) == ""


def test_each_word_of_the_captions_is_one_token(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(tmp_path)
    words = {word for phrase in all_words() for word in phrase.split() if word.isalpha()}
    assert {word: tokenizer.tokenize(word) for word in words} == {w: [f"{w}</w>"] for w in words}
    for text in ["日本 café 🏔", "zqxwv", ""]:
        tokens = tokenizer(text).input_ids
        assert tokens[0] == tokenizer.bos_token_id
        assert tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in tokens[1:-1]
    assert {"vocab.json", "merges.txt"} <= {file.name for file in tmp_path.iterdir()}


def test_training_that_stopped_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    def run(folder: Path, steps: list[int]) -> list[Tensor]:
        folder.mkdir()
        for last in steps:
            torch.manual_seed(0)
            module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3))

            def batch_at(step: int, last: int = last) -> int:
                if step == last:
                    raise KeyboardInterrupt
                return 1 + step % 4

            def loss_of(number: int, module: nn.Module = module) -> Tensor:
                loss: Tensor = module(torch.randn(number, 3, 8, 8)).square().mean()
                return loss

            try:
                schedule = Schedule(8, muon_lr=0.01, adamw_lr=0.01, warm_up=2, save_every=2)
                trained = train("net", folder, module, schedule, batch_at, loss_of, outer=("0.",))
            except KeyboardInterrupt:
                continue
        return list(trained.parameters())

    straight = run(tmp_path / "straight", [-1])
    stopped = run(tmp_path / "stopped", [3, 5, -1])
    assert all(torch.equal(one, other) for one, other in zip(straight, stopped, strict=True))


def test_batches_made_ahead_come_in_order_and_draw_from_no_common_generator() -> None:
    torch.manual_seed(0)
    ahead = made_ahead(lambda number: torch.full((2,), number), range(3, 9), helpers=2)
    assert [int(batch[0]) for batch in ahead] == [3, 4, 5, 6, 7, 8]
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert drawn == torch.rand(1)


@torch.no_grad()
def test_scaling_latents_changes_no_picture() -> None:
    torch.manual_seed(0)
    model = new_autoencoder().eval()
    images = crops(Random(0), 128, 4)
    before = model.decode(model.encode(images).latent_dist.mean).sample
    scale_latents(model)
    assert torch.allclose(
        before, model.decode(model.encode(images).latent_dist.mean).sample, atol=1e-4
    )
    latents = encode(model, crops(Random(1), 128, 48))
    assert latents.mean((0, 2, 3)).abs().max() < 0.3
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.3


def test_what_a_classifier_says_is_counted_by_attribute() -> None:
    class Reader(Classifier):
        """Sees a red house in a flat day, whatever there is."""

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            found = {name: torch.zeros(1, 8) for name in self.heads}
            for name in [*CHOICES, "colour of house"]:
                found[name][0, 0] = 1
            found["things"] = torch.tensor([[1.0] + [-1.0] * 6])
            return found

    house = Scene("flat", "day", "sea", "none", "none", (Thing("house", "red"),), True, True, False)
    boat = Scene(
        "flat", "storm", "sea", "city", "rain", (Thing("boat", "blue"),), True, True, False
    )
    found = judge(Reader(), [Image.new("RGB", (128, 128))] * 2, [house, boat])
    assert (found["style"], found["sky"], found["ground"]) == (1, 0.5, 0)
    assert (found["backdrop"], found["weather"]) == (0, 0)  # of those that are named
    assert (found["object"], found["its colour"], found["no other"]) == (0.5, 0.5, 0.5)


@pytest.mark.slow
def test_a_model_is_trained_from_nothing(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "models.postcard.training", "--tiny", f"--run={tmp_path}/run"]
    for _ in range(2):  # the second time there is nothing left to do
        done = subprocess.run(run, cwd=REPO, capture_output=True, text=True, check=True)
        assert "make serve MODEL=" in done.stdout
    folder = tmp_path / "run/postcard"
    loras = [sys.executable, "-m", "models.postcard.training.loras", f"--model={folder}"]
    loras += [f"--output={tmp_path}", "--steps=2"]
    subprocess.run(loras, cwd=REPO, check=True)
    adapters = {"blueprint": tmp_path / "blueprint.safetensors"}
    pipeline = load_pipeline(ModelConfig(name=str(folder), adapters=adapters))
    settings = {"num_inference_steps": 2, "width": 64, "height": 64, "output_type": "np"}
    (picture,) = pipeline("twin peaks", **settings).images
    assert picture.shape == (64, 64, 3)
    assert (tmp_path / "run/sheets/000006.png").exists()
