"""Masks with references, with controls, blurred, and cropped around, each against its diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from oracle import OTHER, SEED, agreement, hole, scene, theirs
from PIL import Image, ImageDraw

from flux_trt.runtime import Pipeline
from flux_trt.runtime.tasks.masks import blurred
from flux_trt.runtime.tasks.place import Region, overlay

Get = Callable[..., Path]


def patch(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


@pytest.mark.parametrize(("own", "strength"), [(True, 1.0), (False, 1.0), (False, 0.7)])
def test_reference_and_mask(checkpoint: Get, bundle: Get, own: bool, strength: float) -> None:
    """Without a reference of its own, FluxKontextInpaintPipeline takes the picture as reference."""
    size = (80, 64)
    given, mask, other = scene(size), hole(size), scene((64, 48), "blue")
    expected = theirs(
        checkpoint("flux-nano"),
        "FluxKontextInpaintPipeline",
        size,
        prompt=OTHER,
        image=given,
        mask_image=mask,
        image_reference=None if own else other,
        strength=strength,
        guidance_scale=2.0,
        num_inference_steps=6,
        _auto_resize=False,
    )
    with Pipeline.load(bundle("flux-nano"), "onnxruntime") as pipeline:
        more = {} if strength == 1 else {"strength": strength}  # 1 is the default, as there
        asked = {"mask": mask, "steps": 6, "guidance": 2.0, "auto_resize": False, **more}
        (ours,) = pipeline.generate(OTHER, image=given, reference=given if own else other, seed=SEED, **asked)
        (sampled,) = pipeline.generate(OTHER, image=given, seed=SEED, **asked)
    assert agreement(ours, expected) >= 0.999
    assert agreement(sampled, expected) < 0.99


@pytest.mark.parametrize("name", ["canny-like", "flux-nano-canny"])
def test_control_and_mask(checkpoint: Get, bundle: Get, name: str) -> None:
    size, guidance = (64, 48), 10.0 if name == "canny-like" else 1.0
    given, mask, edges = scene(size), hole(size), scene(size, "white")
    expected = theirs(
        checkpoint(name),
        "FluxControlInpaintPipeline",
        size,
        prompt=OTHER,
        image=given,
        mask_image=mask,
        control_image=edges,
        guidance_scale=guidance,
        num_inference_steps=8,
    )
    with Pipeline.load(bundle(name), "onnxruntime") as pipeline:
        (ours,) = pipeline.generate(
            OTHER, image=given, mask=mask, control=edges, guidance=guidance, steps=8, seed=SEED
        )
    assert agreement(ours, expected) >= 0.999


@pytest.mark.parametrize("pad", [0, 5, 40])
@pytest.mark.parametrize("blur", [0, 4])
def test_crop_around_the_mask(checkpoint: Get, bundle: Get, pad: int, blur: int) -> None:
    size = (64, 48)
    given, mask = scene((150, 111)), patch((150, 111), (60, 30, 96, 50))
    folder = checkpoint("flux-nano")
    pipe = diffusers.FluxInpaintPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    soft = pipe.mask_processor.blur(mask, blur) if blur else mask
    found = pipe(
        prompt=OTHER,
        image=given,
        mask_image=soft,
        padding_mask_crop=pad,
        width=size[0],
        height=size[1],
        strength=0.8,
        guidance_scale=2.0,
        num_inference_steps=5,
        generator=torch.Generator().manual_seed(SEED),
        max_sequence_length=32,
    )
    with Pipeline.load(bundle("flux-nano"), "onnxruntime") as pipeline:
        (ours,) = pipeline.generate(
            OTHER,
            image=given,
            mask=mask,
            mask_blur=blur,
            mask_crop=pad,
            size=size,
            strength=0.8,
            guidance=2.0,
            steps=5,
            seed=SEED,
        )
    assert ours.size == given.size
    assert agreement(ours, np.asarray(found.images[0])) >= 0.999
    assert (np.asarray(ours) != np.asarray(given)).any()
    kept = np.asarray(soft) == 0
    np.testing.assert_array_equal(np.asarray(ours)[kept], np.asarray(given)[kept])


@pytest.mark.parametrize("radius", [0.5, 4, 33])
def test_blur_is_diffusers(radius: float) -> None:
    mask = hole((90, 70))
    assert blurred(mask, radius).tobytes() == VaeImageProcessor.blur(mask, radius).tobytes()


@pytest.mark.parametrize("seed", range(20))
def test_regions_and_overlays_are_diffusers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    own = tuple(rng.integers(20, 200, 2).tolist())
    size = tuple((rng.integers(1, 9, 2) * 16).tolist())
    x, y = (int(rng.integers(0, side - 4)) for side in own)
    mask = patch(own, (x, y, *(int(rng.integers(a, b)) for a, b in zip((x, y), own, strict=True))))
    pad = int(rng.integers(0, 30))
    processor = VaeImageProcessor(vae_scale_factor=16, vae_latent_channels=16)
    box = processor.get_crop_region(mask, *size, pad=pad)
    region = Region.around(mask, size, pad)
    assert region.box == box
    image, painted = (Image.fromarray(rng.integers(0, 256, (*wh[::-1], 3), np.uint8)) for wh in (own, size))
    filled = processor.resize(image.crop(box), size[1], size[0], resize_mode="fill")
    assert region.onto(image, size).tobytes() == filled.tobytes()
    soft = blurred(mask, 3)
    expected = processor.apply_overlay(soft, image, painted, box)
    assert region.back(painted, image, soft).tobytes() == expected.tobytes()
    same = Image.fromarray(rng.integers(0, 256, (*own[::-1], 3), np.uint8))
    assert overlay(same, image, soft).tobytes() == processor.apply_overlay(soft, image, same).tobytes()
