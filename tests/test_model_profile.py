import pytest
from pydantic import ValidationError

from shared.config import EngineConfig, ModelConfig
from shared.errors import InvalidRequest
from shared.model_profile import ModelProfile
from shared.request import ImageRequest


def test_gaps_are_filled_with_the_models_defaults(profile: ModelProfile) -> None:
    canonical = profile.canonical(ImageRequest(prompt="a"), seed=3)
    assert canonical.model_dump() == {
        "prompt": "a",
        "negative_prompt": "",
        "width": 256,
        "height": 256,
        "num_inference_steps": 20,
        "guidance_scale": 4.0,
        "scheduler": "DPMSolverMultistepScheduler",
        "seed": 3,
        "lora": {},
    }


def test_what_is_asked_for_is_kept(profile: ModelProfile) -> None:
    asked = ImageRequest(
        prompt="a",
        negative_prompt="b",
        width=512,
        height=128,
        num_inference_steps=3,
        guidance_scale=0,
        scheduler="EulerDiscreteScheduler",
        seed=0,
    )
    assert profile.canonical(asked, seed=3).model_dump() == asked.model_dump()


def test_a_canonical_request_stays_as_it_is(profile: ModelProfile) -> None:
    canonical = profile.canonical(ImageRequest(prompt="a"), seed=3)
    assert profile.canonical(canonical, seed=4) == canonical


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"width": 260}, "width"),
        ({"height": 100}, "height"),
        ({"width": 56}, "width"),
        ({"height": 2056}, "height"),
        ({"width": 2048, "height": 2048}, "width"),
        ({"num_inference_steps": 151}, "num_inference_steps"),
        ({"guidance_scale": 50.5}, "guidance_scale"),
        ({"scheduler": "NoSuchScheduler"}, "scheduler"),
        ({"prompt": "a" * 4001}, "prompt"),
        ({"negative_prompt": "a" * 4001}, "negative_prompt"),
    ],
)
def test_what_is_out_of_bounds_is_named(
    profile: ModelProfile, fields: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        profile.canonical(ImageRequest(**{"prompt": "a"} | fields), seed=0)
    assert caught.value.field == field


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError):
        EngineConfig(max_in_fligth=3)
    with pytest.raises(ValidationError):
        ModelConfig.model_validate({"name": "postcard", "limits": {"max_steps": 3}})


def test_a_string_is_a_models_name() -> None:
    assert ModelConfig.model_validate("postcard") == ModelConfig(name="postcard")


def test_only_the_models_adapters_can_be_asked_for(profile: ModelProfile) -> None:
    adapted = profile.model_copy(update={"adapters": {"ink": "12", "gold": "34"}})
    canonical = adapted.canonical(ImageRequest(prompt="a", lora={"ink": 0.5, "gold": 0}), seed=3)
    assert canonical.lora == {"ink": 0.5}
    with pytest.raises(InvalidRequest, match="lora: 'oil' is not loaded; there are: gold, ink"):
        adapted.canonical(ImageRequest(prompt="a", lora={"oil": 1.0}), seed=3)


def test_the_weights_of_a_request_are_those_of_its_adapters_too(profile: ModelProfile) -> None:
    def fingerprint(digest: str, **lora: float) -> str:
        adapted = profile.model_copy(update={"adapters": {"ink": digest, "gold": "34"}})
        request = adapted.canonical(ImageRequest(prompt="a", lora=lora), seed=3)
        return adapted.fingerprint_for(request)

    assert fingerprint("12") == profile.fingerprint
    assert fingerprint("12", ink=1) != profile.fingerprint
    assert fingerprint("12", ink=1) != fingerprint("13", ink=1)
    assert fingerprint("12", gold=1) == fingerprint("13", gold=1)
