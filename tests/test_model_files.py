import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from shared.config import ModelConfig, RequestDefaults, RequestLimits
from shared.errors import ModelUnavailable
from shared.model_files import DEFAULTS_FILE, describe_model, fingerprint
from shared.pipeline import check_fits, load_pipeline


def config(folder: Path, **fields: object) -> ModelConfig:
    return ModelConfig(name=str(folder), **fields)


def test_the_fingerprint_is_of_the_content_not_the_place(model_folder: Path) -> None:
    bundled = describe_model(ModelConfig())
    copied = describe_model(config(model_folder))
    assert copied.fingerprint == bundled.fingerprint
    (model_folder / "README.md").write_text("not read by the loader")
    assert fingerprint(model_folder) == bundled.fingerprint


def test_the_fingerprint_changes_with_any_weight(model_folder: Path) -> None:
    before = fingerprint(model_folder)
    weights = model_folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(model_folder) != before


def test_without_defaults_of_its_own_diffusers_hold(model_folder: Path) -> None:
    (model_folder / DEFAULTS_FILE).unlink()
    defaults = describe_model(config(model_folder)).defaults
    assert (defaults.num_inference_steps, defaults.guidance_scale) == (50, 7.5)
    assert (defaults.width, defaults.height) == (256, 256)


def test_the_configuration_has_the_last_word_on_defaults(model_folder: Path) -> None:
    asked = config(model_folder, defaults=RequestDefaults(width=128, num_inference_steps=5))
    defaults = describe_model(asked).defaults
    assert (defaults.width, defaults.height) == (128, 256)
    assert (defaults.num_inference_steps, defaults.guidance_scale) == (5, 4.0)


def test_defaults_outside_the_limits_are_refused(model_folder: Path) -> None:
    with pytest.raises(ModelUnavailable, match="num_inference_steps"):
        describe_model(config(model_folder, limits=RequestLimits(max_num_inference_steps=10)))


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    no_checkpoint, none = "not a diffusers folder", "there is no folder ./no/such/folder"
    for name, reason in ((str(tmp_path), no_checkpoint), ("./no/such/folder", none)):
        with pytest.raises(ModelUnavailable, match=reason):
            load_pipeline(name)


def test_a_hub_id_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ModelUnavailable, match="nobody/nothing is no folder here"):
        load_pipeline("nobody/nothing")


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_pickled_weights_are_refused(model_folder: Path, component: str) -> None:
    (safe,) = (model_folder / component).glob("*.safetensors")
    safe.unlink()
    torch.save({}, safe.with_suffix(".bin"))
    with pytest.raises(ModelUnavailable, match=rf"{component}/\w+\.bin can hold code"):
        load_pipeline(config(model_folder))


def test_weights_that_are_none_are_refused(model_folder: Path) -> None:
    (weights,) = (model_folder / "unet").glob("*.safetensors")
    weights.write_bytes(b"no safetensors")
    with pytest.raises(ModelUnavailable, match=r"cannot read .*unet"):
        load_pipeline(config(model_folder))


def test_weights_that_no_memory_holds_are_refused_before_they_are_loaded(
    model_folder: Path,
) -> None:
    (weights,) = (model_folder / "unet").glob("*.safetensors")
    num_bytes = 4 * 10**12
    tensor = {"dtype": "F32", "shape": [10**12], "data_offsets": [0, num_bytes]}
    header = json.dumps({"huge": tensor}).encode()
    with weights.open("wb") as file:  # a sparse one: it takes no place on the disk
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(file.tell() + num_bytes)
    with pytest.raises(ModelUnavailable, match=r"has weights of 4000\.\d GB, and"):
        check_fits(config(model_folder, dtype="float32"))
    # In half as many bytes; and what loading leaves aside for a variant is not counted.
    with pytest.raises(ModelUnavailable, match=r"has weights of 2000\.\d GB, and"):
        check_fits(config(model_folder, dtype="bfloat16"))
    (weights.parent / "model.fp16.safetensors").write_bytes(save({"one": torch.zeros(1)}))
    check_fits(config(model_folder, variant="fp16"))


def test_a_device_that_is_not_here_is_told(model_folder: Path) -> None:
    for device in ("cuda:99", "toaster"):
        with pytest.raises(ModelUnavailable, match=f"there is no device '{device}' here"):
            load_pipeline(config(model_folder, device=device))


def test_code_in_a_checkpoint_is_never_run(model_folder: Path, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    code = f"open({str(proof)!r}, 'w')\nfrom diffusers import UNet2DConditionModel as Own\n"
    (model_folder / "unet" / "own.py").write_text(code)
    index = json.loads((model_folder / "model_index.json").read_text())
    index["unet"] = ["own", "Own"]
    (model_folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelUnavailable, match="custom code"):
        load_pipeline(config(model_folder))
    assert not proof.exists()


def test_a_truncated_checkpoint_is_refused_in_words(model_folder: Path) -> None:
    shutil.rmtree(model_folder / "scheduler")
    with pytest.raises(ModelUnavailable, match=r"scheduler_config\.json"):
        describe_model(config(model_folder))


def test_noise_schedulers_that_cannot_take_the_settings_are_left_out(model_folder: Path) -> None:
    file = model_folder / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text()) | {"algorithm_type": "sde-dpmsolver++"}
    file.write_text(json.dumps(settings))
    schedulers = describe_model(config(model_folder)).schedulers
    assert schedulers[0] == "DPMSolverMultistepScheduler"
    assert "DEISMultistepScheduler" not in schedulers
    assert "DDIMScheduler" in schedulers


@pytest.mark.parametrize("class_name", [None, "NoSuchPipeline", ["own", "Own"]])
def test_a_checkpoint_of_an_unknown_kind_is_refused(model_folder: Path, class_name: object) -> None:
    index = json.loads((model_folder / "model_index.json").read_text())
    index["_class_name"] = class_name
    (model_folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelUnavailable, match="of a kind not known"):
        describe_model(config(model_folder))


def test_a_home_that_cannot_be_written_only_costs_time(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fingerprint(model_folder)

    def refuse(_: str) -> Path:
        raise OSError("read-only file system")

    monkeypatch.setattr("shared.model_files._digest_cache", refuse)
    assert fingerprint(model_folder) == expected


def test_loading_keeps_torchs_number_of_threads() -> None:
    before = torch.get_num_threads()
    load_pipeline()
    assert torch.get_num_threads() == before
