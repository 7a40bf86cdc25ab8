"""What FLUX.3 base does beyond its public pipelines, which have no oracle: what must hold of it anyway."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.modular_pipelines.flux3.image_processor import Flux3ImageProcessor
from flux3_checkpoints import LONG, SHORT
from given import drawn
from PIL import Image

from flux_trt.runtime import Pipeline
from flux_trt.runtime.backends.memory import picture_bytes
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.tasks import sizes
from flux_trt.runtime.tasks.dims import dims_of
from flux_trt.runtime.tasks.request import Request
from flux_trt.runtime.texts import longest

Get = Callable[..., Path]
SIZE = (48, 64)
ASKED: dict[str, Any] = {"size": SIZE, "steps": 4, "seed": 3}


@pytest.fixture(scope="module")
def base(flux3_bundle: Get) -> Pipeline:
    with Pipeline.load(flux3_bundle("base"), "onnxruntime") as pipeline:
        yield pipeline


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def hole() -> Image.Image:
    """Of the right half."""
    found = Image.new("L", SIZE)
    found.paste(255, (SIZE[0] // 2, 0, *SIZE))
    return found


def test_a_picture_of_full_strength_is_painted_from_noise(base: Pipeline) -> None:
    """With less it starts from what the VAE makes of the picture: the less, the nearer."""
    given = drawn(*SIZE, 1)
    encoded = base.encode_picture(np.asarray(given))
    (seen,) = base.decode(encoded.mode[None], encoded.grid)
    (noise,) = base.generate(LONG[1], **ASKED)
    found = [base.generate(LONG[1], image=given, strength=each, **ASKED)[0] for each in (1.0, 0.75, 0.25)]
    assert np.array_equal(values(found[0]), values(noise))
    apart = [float(np.abs(values(each) - values(seen)).mean()) for each in found]
    assert apart[0] > apart[1] > apart[2]


def test_a_mask_keeps_what_is_black_and_paints_what_is_white(base: Pipeline) -> None:
    given, white, mask = drawn(*SIZE, 1), Image.new("L", SIZE, 255), hole()
    asked = {"image": given, "strength": 0.9, **ASKED}
    (whole,) = base.generate(LONG[1], **asked)
    (through,) = base.generate(LONG[1], mask=white, **asked)
    (half,) = base.generate(LONG[1], mask=mask, paste=True, **asked)
    assert (np.abs(values(through) - values(whole)) <= 1).mean() >= 0.999
    left = slice(None), slice(0, SIZE[0] // 2)
    assert np.array_equal(values(half)[left], values(given)[left])
    right = slice(None), slice(SIZE[0] // 2, None)
    assert (np.abs(values(half)[right] - values(given)[right]) > 1).mean() > 0.5


def test_flowedit_between_the_same_words_changes_nothing(base: Pipeline) -> None:
    """It gives what the VAE makes of the picture; between others, of windows of any length, it does not."""
    given, asked = drawn(*SIZE, 1), {"size": SIZE, "steps": 4, "n_max": 3}
    (same,) = base.edit(given, source=SHORT[0], target=SHORT[0], **asked)
    encoded = base.encode_picture(np.asarray(given))
    (expected,) = base.decode(encoded.mode[None], encoded.grid)
    assert (np.abs(values(same) - values(expected)) <= 1).mean() >= 0.999
    for source, target in ((SHORT[0], SHORT[1]), (SHORT[0], LONG[1])):
        (other,) = base.edit(given, source=source, target=target, **asked)
        assert (np.abs(values(other) - values(same)) > 1).mean() > 0.1


def test_a_flow_map_refuses_them(flux3_bundle: Get) -> None:
    found, given = manifest.read(flux3_bundle("distilled")), drawn(*SIZE, 1)
    asks: dict[str, Callable[[], Request]] = {
        "image": lambda: Request.of(found, "a", image=given),
        "inpaint": lambda: Request.of(found, "a", image=given, mask=hole()),
        "edit": lambda: Request.of_edit(found, given, "a", "b"),
    }
    for task, ask in asks.items():
        with pytest.raises(
            RequestError, match=f"a Klein bundle cannot do the task {task} .*reference"
        ) as why:
            ask()
        assert "\n" not in str(why.value)


def test_references_are_ten_at_most(flux3_bundle: Get) -> None:
    found, given = manifest.read(flux3_bundle("base")), [drawn(48, 48, seed) for seed in range(11)]
    assert len(Request.of(found, "a", reference=given[:10]).references) == 10
    with pytest.raises(RequestError, match="11 reference pictures are given, and 10 is the most"):
        Request.of(found, "a", reference=given)
    with pytest.raises(RequestError, match="12x40 pixels and each side needs at least 16"):
        Request.of(found, "a", reference=[drawn(12, 40, 1), drawn(48, 48, 2)])


SIDES = [(1000, 700), (5000, 300), (10, 10), (2048, 2049), (2050, 2050), (3000, 2000), (17, 900), (64, 80)]


@pytest.mark.parametrize("size", SIDES)
def test_one_reference_lies_on_its_canvas_as_in_diffusers(flux3_bundle: Get, size: tuple[int, int]) -> None:
    """And what is painted is cropped back to where it lies."""
    processor, given = Flux3ImageProcessor(), drawn(*size, 1)
    shrunk = processor._resize_if_canvas_exceeds_area(given)
    high, wide = processor._get_canvas_height_width(shrunk.height, shrunk.width)
    found = Request.of(manifest.read(flux3_bundle("base")), "a", reference=given)
    (reference,) = found.references
    assert reference.size == (found.width, found.height) == (wide, high)
    assert found.crop == processor._get_fill_region(shrunk, high, wide)
    assert np.array_equal(values(reference), values(processor._resize_and_fill(shrunk, wide, high)))
    sized = Request.of(manifest.read(flux3_bundle("base")), "a", reference=given, size=(64, 48))
    assert (sized.crop, sized.width, sized.height) == (None, 64, 48)


def test_several_references_are_cropped_as_in_diffusers(flux3_bundle: Get) -> None:
    sides = [size for size in SIDES if min(size) >= 16 and max(size) <= 4096]
    processor, given = Flux3ImageProcessor(), [drawn(*size, 1) for size in sides]
    found = Request.of(manifest.read(flux3_bundle("base")), "a", reference=given)
    assert found.crop is None
    assert (found.width, found.height) == found.references[0].size
    for one, reference in zip(given, found.references, strict=True):
        shrunk = processor._resize_if_exceeds_area(one)
        wide, high = (side // 16 * 16 for side in shrunk.size)
        assert np.array_equal(values(reference), values(processor._resize_and_crop(shrunk, wide, high)))


def test_a_prompt_that_is_shorter_than_captions_are_is_told_of(
    flux3_bundle: Get, bundle: Get, caplog: pytest.LogCaptureFixture
) -> None:
    found = manifest.read(flux3_bundle("distilled"))
    Request.of(found, "a fox")
    assert "the prompt has 2 words, and this model is meant for captions of 100 and more" in caplog.text
    caplog.clear()
    Request.of(found, ["a fox", "word " * 120])
    assert "a prompt has 2 words" in caplog.text
    caplog.clear()
    Request.of(found, "make it blue", reference=[drawn(48, 48, 1)])
    assert "the prompt has 3 words, and this model is meant for captions of 50" in caplog.text
    caplog.clear()
    Request.of(found, "word " * 100)
    Request.of(found, "\u7d05" * 100)
    Request.of(found, "word " * 50, reference=[drawn(48, 48, 1)])
    Request.of(manifest.read(bundle("dev-like")), "a fox")
    assert "captions" not in caplog.text


def test_memory_is_counted_for_the_windows_that_are_used(flux3_bundle: Get, bundle: Get) -> None:
    """Not for the longest that there may be; a fixed window is as it is."""
    opened = Bundle.open(flux3_bundle("distilled"), check=False)
    assert [longest(opened, [each]) for each in LONG] == [80, 240]
    assert longest(opened, LONG) == 240
    assert longest(Bundle.open(bundle("dev-like"), check=False), LONG) is None
    request = Request.of(opened.manifest, LONG[0], boxes=[{"bbox": [0, 0, 1, 1], "desc": "word " * 20}])
    seen = longest(opened, request.texts(slice(None)))
    assert seen is not None
    assert seen > 80, "the rows behind the prompt are read, too"
    used, most = (
        picture_bytes(opened.manifest.stages.values(), dims_of(request, opened.manifest, text))
        for text in (seen, None)
    )
    assert used < most
    assert " tokens and 320 of text: up to " in sizes.said((64, 64), opened.manifest)
    assert " of text" not in sizes.said((64, 64), manifest.read(bundle("dev-like")))
