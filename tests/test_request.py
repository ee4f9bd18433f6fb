import math

import pytest

from shared.errors import InvalidRequest
from shared.request import CanonicalRequest, ImageRequest, lora_text, parse_request

CANONICAL = CanonicalRequest(
    prompt="twin peaks",
    width=256,
    height=256,
    num_inference_steps=20,
    guidance_scale=4.0,
    scheduler="DDIMScheduler",
    seed=7,
)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("prompt", "", "must not be empty"),
        ("prompt", "   \n", "must not be empty"),
        ("prompt", None, "must be a text"),
        ("prompt", 3, "must be a text"),
        ("prompt", "\ud800", "must be valid Unicode"),
        ("negative_prompt", ["a"], "must be a text"),
        ("width", 0, "must be at least 1"),
        ("width", 25.5, "must be a whole number"),
        ("height", "tall", "must be a whole number"),
        ("num_inference_steps", -1, "must be at least 1"),
        ("guidance_scale", -0.1, "must be at least 0"),
        ("guidance_scale", math.nan, "must be a finite number"),
        ("guidance_scale", math.inf, "must be a finite number"),
        ("seed", -1, "must be at least 0"),
        ("seed", 2**53, "must be at most 9007199254740991"),
        ("steps", 20, "is not a field of this request"),
        ("lora", "ink", "must be like name:0.8,name:1"),
        ("lora", [1], "must be an object"),
    ],
)
def test_a_wrong_field_is_named_and_why(field: str, value: object, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request({"prompt": "a", field: value})
    assert str(caught.value) == f"{field}: {told}"
    assert caught.value.field == field


def test_a_missing_prompt_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"^prompt: is required$") as caught:
        parse_request({"width": 256})
    assert caught.value.field == "prompt"


def test_what_is_no_object_is_told_so() -> None:
    with pytest.raises(InvalidRequest, match="body: must be a JSON object"):
        parse_request([])  # type: ignore[arg-type]


@pytest.mark.parametrize("lora", [{"ink": 0.8, "gold": -1}, "ink:0.8, gold:-1"])
def test_lora_weights_are_an_object_or_a_text(lora: object) -> None:
    request = parse_request({"prompt": "a", "lora": lora})
    assert request.lora == {"ink": 0.8, "gold": -1}
    assert parse_request({"prompt": "a", "lora": lora_text(request.lora)}) == request


@pytest.mark.parametrize("weight", [None, "much", 11, math.nan])
def test_a_wrong_lora_weight_is_named(weight: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request({"prompt": "a", "lora": {"ink": weight}})
    assert caught.value.field == "lora.ink"


@pytest.mark.parametrize(("weight", "text"), [(1.0, "1"), (-0.5, "-0.5"), (1 / 3, str(1 / 3))])
def test_a_lora_weight_is_the_same_after_its_text(weight: float, text: str) -> None:
    assert lora_text({"gold": weight}) == f"gold:{text}"
    assert parse_request({"prompt": "a", "lora": f"gold:{text}"}).lora == {"gold": weight}


def test_what_is_left_out_stays_open() -> None:
    assert parse_request({"prompt": "a"}) == ImageRequest(prompt="a")


def test_null_stands_for_the_default() -> None:
    nulls = dict.fromkeys(ImageRequest.model_fields.keys() - {"prompt"})
    assert parse_request({"prompt": "a"} | nulls) == ImageRequest(prompt="a")


def test_equal_requests_have_one_image_id() -> None:
    spelt_otherwise = CanonicalRequest(**CANONICAL.model_dump() | {"guidance_scale": 4})
    assert spelt_otherwise.image_id("model") == CANONICAL.image_id("model")


@pytest.mark.parametrize(("field", "value"), [("seed", 8), ("prompt", "twin peak"), ("width", 264)])
def test_another_request_has_another_image_id(field: str, value: object) -> None:
    other = CANONICAL.model_copy(update={field: value})
    assert other.image_id("model") != CANONICAL.image_id("model")


def test_another_model_or_row_has_another_image_id() -> None:
    ids = {
        CANONICAL.image_id("model"),
        CANONICAL.image_id("other model"),
        CANONICAL.image_id("model", source="0"),
        CANONICAL.image_id("model", source="1"),
    }
    assert len(ids) == 4
