"""What becomes of pictures that are given, against diffusers: sizes, pixels and masks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from family_rules import PREFERRED, SHRUNK
from PIL import Image

from flux_trt.exporter.families.flux1.variants import REFERENCES
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.rules import References
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures import picture
from flux_trt.runtime.tasks.references import painted_size, preferred_size, prepared, whole_patches


class ChosenError(Exception):
    pass


@pytest.fixture(scope="module")
def kontext_size():
    """FluxKontextPipeline itself, without models, up to the resize of its reference picture."""
    parts = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    pipe = FluxKontextPipeline(FlowMatchEulerDiscreteScheduler(), **dict.fromkeys(parts))

    def resize(image: Image.Image, height: int, width: int) -> None:
        raise ChosenError(width, height)

    pipe.image_processor.resize = resize
    pipe.encode_prompt = lambda **_: (torch.zeros(1, 4, 8), torch.zeros(1, 8), torch.zeros(4, 3))

    def size(width: int, height: int, auto_resize: bool) -> tuple[int, int]:
        with pytest.raises(ChosenError) as chosen:
            pipe(
                image=Image.new("L", (width, height)),
                prompt="",
                height=1024,
                width=1024,
                _auto_resize=auto_resize,
            )
        return chosen.value.args

    return size


def test_reference_sizes_equal_diffusers(kontext_size):
    rng = np.random.default_rng(0)
    sizes = [
        tuple(size) for size in np.exp(rng.uniform(np.log(16), np.log(3000), (300, 2))).astype(int).tolist()
    ]
    sizes += map(tuple, PREFERRED.sizes)
    # Halfway between two preferred aspect ratios, as near as whole pixels get.
    ratios = sorted(w / h for w, h in PREFERRED.sizes)
    sizes += [(round(1600 * (a + b) / 2), 1600) for a, b in itertools.pairwise(ratios)]
    for size in sizes:
        assert preferred_size(PREFERRED, size, 16, 1024 * 1024) == kontext_size(*size, True), size
        assert whole_patches(size, 16) == kontext_size(*size, False), size


def test_preferred_sizes_are_those_of_diffusers():
    """In new bundles, and in those of schema 1."""
    theirs = [list(size) for size in PREFERRED_KONTEXT_RESOLUTIONS]
    assert REFERENCES.size.sizes == PREFERRED.sizes == theirs


@pytest.mark.parametrize("size", [(64, 64), (500, 71), (1024, 1024), (1600, 1000), (1025, 1030), (3000, 400)])
def test_shrunk_references_equal_diffusers(tiny, size):
    """As Flux2Pipeline.__call__ does, step 4."""
    rng = np.random.default_rng(size[0])
    image = Image.fromarray(rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)).resize(size)
    processor = Flux2ImageProcessor(vae_scale_factor=16)
    expected = processor.check_image_input(image)
    if expected.width * expected.height > 1024 * 1024:
        expected = processor._resize_to_target_area(expected, 1024 * 1024)
    width, height = (side // 16 * 16 for side in expected.size)
    pixels = processor.preprocess(expected, height=height, width=width, resize_mode="crop")[0]
    found = prepared(shrinking(tiny), image, auto_resize=True)
    assert found.size == (width, height)
    theirs = ((pixels.permute(1, 2, 0) + 1) * 127.5).round().numpy()
    np.testing.assert_array_equal(np.asarray(found), theirs)
    assert painted_size(shrinking(tiny), found) == found.size


@pytest.mark.parametrize("size", [(63, 100), (100, 63), (900, 100), (100, 801)])
def test_references_that_diffusers_refuses(tiny, size):
    image = Image.new("RGB", size)
    with pytest.raises(ValueError, match=r"too small|too extreme"):
        Flux2ImageProcessor.check_image_input(image)
    with pytest.raises(RequestError, match="sides are at least 64, and the long one at most 8 times"):
        prepared(shrinking(tiny), image, auto_resize=True)


def shrinking(tiny):
    """The manifest of a bundle that takes pictures at their own size."""
    found = manifest.read(tiny)
    model = found.model.model_copy(update={"references": References(enters="latents", size=SHRUNK)})
    sizes = manifest.Sizes(smallest=16, largest=4096)
    return found.model_copy(update={"model": model, "sizes": sizes})


def drawn(rng: np.random.Generator, mode: str) -> Image.Image:
    height, width = rng.integers(5, 200, 2)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(rng.integers(0, 256, shape, np.uint8))


SIZES = [(64, 64), (96, 32), (16, 160)]


@pytest.mark.parametrize("seed", range(4))
def test_pixels_equal_diffusers(seed):
    rng = np.random.default_rng(seed)
    processor = VaeImageProcessor(vae_scale_factor=16, vae_latent_channels=16, do_normalize=False)
    image = drawn(rng, "RGB")
    for size in (*SIZES, (image.width // 16 * 16 + 16, image.height // 16 * 16 + 16)):
        expected = processor.preprocess(image, height=size[1], width=size[0])[0].permute(1, 2, 0)
        found = picture.as_pixels(image, size)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found.astype(np.float32) / 255, expected.numpy())
    same = drawn(rng, "RGB").resize((48, 80))
    np.testing.assert_array_equal(picture.as_pixels(same, same.size), np.asarray(same))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("seed", range(4))
def test_masks_equal_diffusers(mode, seed):
    """Set up as FluxFillPipeline, FluxInpaintPipeline and FluxKontextInpaintPipeline set it up."""
    rng = np.random.default_rng(seed)
    processor = VaeImageProcessor(
        vae_scale_factor=16,
        vae_latent_channels=16,
        do_normalize=False,
        do_binarize=True,
        do_convert_grayscale=True,
    )
    noisy, binary = drawn(rng, mode), drawn(rng, mode).point(lambda value: 255 * (value > 127))
    ramp = Image.linear_gradient("L").convert(mode)
    for image in (noisy, binary, ramp):
        for size in (*SIZES, (256, 256)):
            expected = processor.preprocess(image, height=size[1], width=size[0])[0, 0].numpy()
            found = picture.as_mask(image, size)
            assert found.dtype == np.float32
            assert 0 < expected.mean() < 1
            np.testing.assert_array_equal(found, expected)
