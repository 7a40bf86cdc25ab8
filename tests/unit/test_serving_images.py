"""The images API, asked by OpenAI's own client: the pictures are flux-run's, bit by bit."""

import base64
import io
import json

import numpy as np
import openai
import pytest
from painting_threads import SIZE, hole, scene
from PIL import Image
from serving_run import file, pixels, running

from flux_trt.runtime import recorded
from flux_trt.serving.errors import LONGEST_WAIT
from flux_trt.serving.fields import ALIASES, IDLE, REFUSED, Fields
from flux_trt.serving.limits import Limits

NUMBERS = {"seed": 5, "steps": 3, "guidance": 2.0}


@pytest.fixture(scope="module")
def nano(bundle):
    with running({"nano": bundle("flux-nano")}, aliases={"gpt-image-2": "nano"}) as found:
        yield found


@pytest.fixture(scope="module")
def small(tiny):
    with running({"tiny": tiny}, limits=Limits(given_megapixels=0.02, file_bytes=100_000)) as found:
        yield found


def painted(server, prompt, **asked):
    return [np.asarray(each) for each in server.pipelines["nano"].generate(prompt, **asked)]


def test_pictures_from_text(nano):
    answer = nano.client().images.generate(
        model="gpt-image-2", prompt="a red circle", n=3, size="48x32", extra_body=NUMBERS
    )
    alone = painted(nano, "a red circle", count=3, size=(48, 32), **NUMBERS)
    for each, exact in zip(answer.data, alone, strict=True):
        np.testing.assert_array_equal(pixels(each.b64_json), exact)
    assert [each.model_extra["seed"] for each in answer.data] == [5, 6, 7]
    assert (answer.size, answer.output_format, answer.background) == ("48x32", "png", "opaque")
    assert answer.model_extra["model"] == "nano"
    assert answer.usage.output_tokens == 3 * 2 * 3
    assert answer.usage.input_tokens == answer.usage.total_tokens - 18 > 0


def test_a_seed_is_drawn_and_told(nano):
    client = nano.client()
    asked = {"prompt": "a", "size": "32x32"}
    one, two = (client.images.generate(**asked, extra_body={"steps": 1}) for _ in range(2))
    seeds = [each.data[0].model_extra["seed"] for each in (one, two)]
    assert seeds[0] != seeds[1]
    again = client.images.generate(**asked, extra_body={"steps": 1, "seed": seeds[0]})
    assert again.data[0].b64_json == one.data[0].b64_json


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        ({"num_inference_steps": 2, "guidance_scale": 3.0}, {"steps": 2, "guidance": 3.0}),
        (
            {"negative_prompt": "green", "true_cfg_scale": 2.0, "steps": 2},
            {"negative": "green", "true_cfg": 2.0, "steps": 2},
        ),
        ({"shift": 1.5, "steps": 2}, {"shift": 1.5, "steps": 2}),
        ({"sigmas": [1, 0.5]}, {"sigmas": [1, 0.5]}),
        ({"solver": "ab2", "steps": 3}, {"solver": "ab2", "steps": 3}),
        ({"prompt_2": "a blue square", "steps": 2}, {"prompt_2": "a blue square", "steps": 2}),
        ({"quality": "low"}, {"steps": 14}),
        ({"quality": "hd"}, {"steps": 42}),
        ({"width": 32, "height": 48, "steps": 1}, {"size": (32, 48), "steps": 1}),
        ({"size": "auto", "steps": 1, "moderation": "low", "style": "vivid", "user": "u"}, {"steps": 1}),
    ],
)
def test_every_parameter_reaches_the_picture(nano, sent, asked):
    answer = nano.client().images.generate(prompt="a red circle", extra_body={"seed": 9, **sent})
    (exact,) = painted(nano, "a red circle", seed=9, **asked)
    np.testing.assert_array_equal(pixels(answer.data[0].b64_json), exact)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats_with_parameters_inside(nano, tmp_path, kind):
    more = {} if kind == "png" else {"output_compression": 80}
    answer = nano.client().images.generate(prompt="a", output_format=kind, extra_body=NUMBERS, **more)
    data = base64.b64decode(answer.data[0].b64_json)
    assert Image.open(io.BytesIO(data)).format == kind.upper()
    (tmp_path / f"picture.{kind}").write_bytes(data)
    found = recorded(tmp_path / f"picture.{kind}").parameters
    assert (found["prompt"], found["seed"], found["steps"]) == ("a", 5, 3)


def test_what_was_not_read_is_told_to_the_client_alone(nano, capfd):
    answer = nano.client().images.generate(prompt="a secret word " * 99, extra_body={"steps": 1})
    assert "t5 reads only 32 tokens" in " ".join(answer.model_extra["warnings"])
    assert "secret" not in "".join(capfd.readouterr())


PICTURE = scene()
EDITS = {
    "image to image": ({"strength": 0.7}, {"image": PICTURE, "strength": 0.7}),
    "reference": ({"auto_resize": False}, {"reference": [PICTURE], "auto_resize": False}),
    "edit": (
        {"source": "a red circle", "n_max": 2, "n_avg": 2},
        {"image": PICTURE, "source": "a red circle", "n_max": 2, "n_avg": 2},
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits(nano, name):
    sent, asked = EDITS[name]
    numbers = {"seed": 5, "steps": 3}
    answer = nano.client().images.edit(
        image=file(PICTURE), prompt="a blue square", extra_body={**numbers, **sent}
    )
    pipeline = nano.pipelines["nano"]
    if name == "edit":
        (exact,) = pipeline.edit(asked.pop("image"), target="a blue square", **asked, **numbers)
    else:
        (exact,) = pipeline.generate("a blue square", **asked, **numbers)
    np.testing.assert_array_equal(pixels(answer.data[0].b64_json), np.asarray(exact))


@pytest.mark.parametrize("transparent", [True, False])
def test_a_mask_is_openais_where_it_is_transparent_and_white_else(nano, transparent):
    mask = hole()
    if transparent:
        sent = Image.new("RGBA", SIZE, "green")
        sent.putalpha(mask.point(lambda value: 255 - value))
    else:
        sent = mask
    answer = nano.client().images.edit(
        image=[file(PICTURE, "JPEG")],
        mask=file(sent),
        prompt="a blue square",
        extra_body={**NUMBERS, "strength": 1.0, "paste": True},
    )
    image = Image.open(io.BytesIO(file(PICTURE, "JPEG")))
    (exact,) = nano.pipelines["nano"].generate(
        "a blue square", image=image, mask=mask, strength=1.0, paste=True, **NUMBERS
    )
    np.testing.assert_array_equal(pixels(answer.data[0].b64_json), np.asarray(exact))


def test_edits_as_json_with_data_addresses(nano):
    address = "data:image/png;base64," + base64.b64encode(file(PICTURE)).decode()
    answer = nano.post(
        "/v1/images/edits", json={"prompt": "a", "image": [address], "strength": 0.5, **NUMBERS}
    )
    (exact,) = nano.pipelines["nano"].generate("a", image=PICTURE, strength=0.5, **NUMBERS)
    np.testing.assert_array_equal(pixels(answer.json()["data"][0]["b64_json"]), np.asarray(exact))


def test_a_stream_of_partial_pictures(nano):
    events = list(
        nano.client().images.generate(
            prompt="a red circle", stream=True, partial_images=3, extra_body={"steps": 8, "seed": 5}
        )
    )
    kinds = [each.type.removeprefix("image_generation.") for each in events]
    assert kinds == ["partial_image"] * 3 + ["completed"]
    assert [each.partial_image_index for each in events[:3]] == [0, 1, 2]
    (exact,) = painted(nano, "a red circle", steps=8, seed=5)
    np.testing.assert_array_equal(pixels(events[-1].b64_json), exact)
    off = [np.abs(pixels(each.b64_json).astype(float) - exact).mean() for each in events]
    assert off == sorted(off, reverse=True)
    assert off[0] < 60
    assert events[-1].usage.total_tokens
    edits = nano.client().images.edit(
        image=file(PICTURE), prompt="a", stream=True, extra_body={"strength": 0.5, "steps": 2}
    )
    assert [each.type for each in edits] == ["image_edit.completed"]


REFUSALS = [
    ({"prompt": None}, "prompt", "missing"),
    ({"model": "dall-e-3"}, "model", "model_not_found"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 11}, "n", "invalid_value"),
    ({"size": "33x32"}, "size", "invalid_value"),
    ({"size": "huge"}, "size", None),
    ({"size": "99999x99999"}, "size", "invalid_value"),
    ({"width": 32}, "height", None),
    ({"size": "32x32", "width": 48, "height": 32}, "size", None),
    ({"quality": "best"}, "quality", "invalid_value"),
    ({"quality": "low", "steps": 2}, "quality", "invalid_value"),
    ({"background": "transparent"}, "background", "invalid_value"),
    ({"output_format": "gif"}, "output_format", "invalid_value"),
    ({"output_format": "../x"}, "output_format", "invalid_value"),
    ({"output_compression": 50}, "output_compression", "invalid_value"),
    ({"output_format": "jpeg", "output_compression": 101}, "output_compression", "invalid_value"),
    ({"response_format": "url"}, "response_format", "invalid_value"),
    ({"partial_images": 2}, "partial_images", "invalid_value"),
    ({"stream": True, "partial_images": 4}, "partial_images", "invalid_value"),
    ({"seed": -1}, "seed", "invalid_value"),
    ({"steps": 0}, "steps", "invalid_value"),
    ({"num_inference_steps": 0}, "num_inference_steps", "invalid_value"),
    ({"steps": 201}, "steps", "invalid_value"),
    ({"steps": 3, "num_inference_steps": 4}, "num_inference_steps", None),
    ({"guidance": "much"}, "guidance", "invalid_value"),
    ({"true_cfg": 2.0}, "negative", "invalid_value"),
    ({"strength": 0.5}, "strength", "unsupported_parameter"),
    ({"flavour": 1}, "flavour", "unknown_parameter"),
    *(({name: 1}, name, "unsupported_parameter") for name in REFUSED),
]


@pytest.mark.parametrize(("sent", "param", "code"), REFUSALS, ids=lambda each: str(each)[:30])
def test_what_cannot_be_is_refused_by_name(small, sent, param, code):
    before = small.engine.seconds_ahead()
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as fault:
        small.client().images.generate(**{"prompt": "a", "extra_body": sent})
    assert (fault.value.param, fault.value.code) == (param, code)
    assert fault.value.type == "invalid_request_error"
    assert "\n" not in fault.value.body["message"]
    assert fault.value.request_id.startswith("req_")
    assert fault.value.response.headers["x-should-retry"] == "false"
    assert small.engine.seconds_ahead() == before == 0


def test_every_field_is_used_ignored_or_refused(small):
    """A field that nobody thought of would be silence."""
    from inspect import signature

    typed = {*signature(openai.resources.Images.generate).parameters}
    typed |= {*signature(openai.resources.Images.edit).parameters}
    own = {"self", "image", "mask", "extra_headers", "extra_query", "extra_body", "timeout"}
    known = {*Fields.model_fields, *ALIASES, *IDLE, *REFUSED}
    assert typed - own <= known


SMALL = file(Image.new("RGB", (32, 32)))
EDIT_REFUSALS = {
    "a BMP": (file(Image.new("RGB", (32, 32)), "BMP"), {}, 400, "image", "unsupported_image"),
    "text": (b"no picture", {}, 400, "image", "unsupported_image"),
    "large": (file(Image.new("L", (200, 101))), {}, 413, "image", "image_too_large"),
    "heavy": (SMALL + bytes(100_000), {}, 413, "image", "image_too_large"),
    "half": (SMALL[:60], {}, 400, "image", "unsupported_image"),
    "mask": (SMALL, {"mask": file(Image.new("L", (16, 16)))}, 400, "mask", "invalid_value"),
}


@pytest.mark.parametrize("name", EDIT_REFUSALS)
def test_pictures_that_are_refused(small, name):
    image, more, status, param, code = EDIT_REFUSALS[name]
    with pytest.raises(openai.APIStatusError) as fault:
        small.client().images.edit(image=image, prompt="a", **more)
    assert (fault.value.status_code, fault.value.param, fault.value.code) == (status, param, code)


@pytest.mark.parametrize("address", ["https://example.com/a.png", "/etc/passwd", "file:///etc/passwd"])
def test_nothing_is_fetched_and_no_path_read(small, address):
    sent = small.post("/v1/images/edits", json={"prompt": "a", "image": address})
    form = small.post("/v1/images/edits", data={"prompt": "a"}, files={"image": (None, address)})
    for answer in (sent, form):
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "unsupported_image"


def test_a_bundle_that_cannot_says_so_in_the_apis_words(small):
    with pytest.raises(openai.BadRequestError, match="cannot do the task") as fault:
        small.client().images.edit(image=file(Image.new("RGB", (32, 32))), prompt="a")
    assert "--" not in fault.value.message


@pytest.mark.parametrize(
    ("path", "options", "status", "code"),
    [
        ("/v1/images/generations", {"content": b"{"}, 400, "invalid_body"),
        ("/v1/images/generations", {"content": b"[1]"}, 400, "invalid_body"),
        ("/v1/images/generations", {"content": b"[" * 100_000}, 400, "invalid_body"),
        ("/v1/images/edits", {"content": b"x"}, 400, None),
        ("/v1/images/variations", {}, 404, "not_found"),
        ("/v1/nothing", {}, 404, "not_found"),
        ("/v1/models", {}, 405, "not_found"),
    ],
)
def test_faults_have_openais_shape(small, path, options, status, code):
    answer = small.post(path, **options)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == code
    assert answer.headers["x-request-id"]


def test_waits_are_short_enough_to_be_obeyed():
    assert LONGEST_WAIT <= 120


def test_models(nano):
    client = nano.client()
    assert [each.id for each in client.models.list()] == ["nano", "gpt-image-2"]
    found = client.models.retrieve("gpt-image-2")
    assert found.model_extra["root"] == "nano"
    assert "reference" in found.model_extra["tasks"]
    assert json.dumps(found.model_extra)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
