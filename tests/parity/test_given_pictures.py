"""What becomes of pictures that are given, against diffusers: sizes, pixels and masks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from flux_trt.runtime.pictures import picture
from flux_trt.runtime.tasks import kontext


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
    sizes += kontext.PREFERRED
    # Halfway between two preferred aspect ratios, as near as whole pixels get.
    ratios = sorted(w / h for w, h in kontext.PREFERRED)
    sizes += [(round(1600 * (a + b) / 2), 1600) for a, b in itertools.pairwise(ratios)]
    for size in sizes:
        for auto_resize in (True, False):
            expected = kontext_size(*size, auto_resize)
            assert kontext.reference_size(*size, 16, auto_resize, 1024 * 1024) == expected, size


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
