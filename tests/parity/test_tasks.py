"""Every task against its diffusers pipeline: same weights, same seed, fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from oracle import OTHER, PROMPT, SEED, agreement, hole, scene, theirs
from PIL import Image

from flux_trt.runtime import Pipeline

Get = Callable[..., Path]


@pytest.mark.parametrize(
    ("name", "size", "steps", "strength"),
    [("flux-nano", (64, 64), 10, 0.6), ("flux-nano", (96, 48), 12, 0.3), ("schnell-like", (32, 64), 4, 0.5)],
)
def test_image_to_image(
    checkpoint: Get, bundle: Get, name: str, size: tuple[int, int], steps: int, strength: float
) -> None:
    given, guided = scene((120, 80)), name == "flux-nano"
    asked = {"guidance_scale": 2.0} if guided else {}
    expected = theirs(
        checkpoint(name),
        "FluxImg2ImgPipeline",
        size,
        prompt=PROMPT,
        image=given,
        strength=strength,
        num_inference_steps=steps,
        **asked,
    )
    with Pipeline.load(bundle(name), "onnxruntime") as pipeline:
        more = {"guidance": 2.0} if guided else {}
        (ours,) = pipeline.generate(
            PROMPT, image=given, strength=strength, size=size, steps=steps, seed=SEED, **more
        )
    assert agreement(ours, expected) >= 0.999


@pytest.mark.parametrize("name", ["flux-nano", "dev-like"])
def test_true_classifier_free_guidance(checkpoint: Get, bundle: Get, name: str) -> None:
    size = (64, 48)
    expected = theirs(
        checkpoint(name),
        "FluxPipeline",
        size,
        prompt=PROMPT,
        negative_prompt=OTHER,
        true_cfg_scale=3.0,
        guidance_scale=1.5,
        num_inference_steps=6,
    )
    with Pipeline.load(bundle(name), "onnxruntime") as pipeline:
        asked = {"size": size, "steps": 6, "guidance": 1.5, "seed": SEED}
        (ours,) = pipeline.generate(PROMPT, negative=OTHER, true_cfg=3.0, **asked)
        (plain,) = pipeline.generate(PROMPT, **asked)
        two = pipeline.generate(
            [PROMPT, PROMPT], negative=["", OTHER], true_cfg=3.0, batch=2, **{**asked, "seed": [1, SEED]}
        )
    assert agreement(ours, expected) >= 0.999
    assert agreement(two[1], expected) >= 0.999
    assert agreement(plain, expected) < 0.9


@pytest.mark.parametrize(("name", "strength"), [("flux-nano", 0.7), ("flux-nano", 1.0), ("dev-like", 0.5)])
def test_masked_painting(checkpoint: Get, bundle: Get, name: str, strength: float) -> None:
    size = (80, 64)
    given, mask = scene(size), hole(size)
    expected = theirs(
        checkpoint(name),
        "FluxInpaintPipeline",
        size,
        prompt=OTHER,
        image=given,
        mask_image=mask,
        strength=strength,
        guidance_scale=2.0,
        num_inference_steps=8,
    )
    with Pipeline.load(bundle(name), "onnxruntime") as pipeline:
        asked = {"image": given, "mask": mask, "strength": strength, "steps": 8, "guidance": 2.0}
        (ours,) = pipeline.generate(OTHER, seed=SEED, **asked)
        (pasted,) = pipeline.generate(OTHER, seed=SEED, paste=True, **asked)
    assert agreement(ours, expected) >= 0.999
    kept = np.asarray(mask) < 128
    np.testing.assert_array_equal(np.asarray(pasted)[kept], np.asarray(given)[kept])
    np.testing.assert_array_equal(np.asarray(pasted)[~kept], np.asarray(ours)[~kept])


def test_masked_painting_with_true_guidance(checkpoint: Get, bundle: Get) -> None:
    size = (48, 64)
    given, mask = scene(size), hole(size)
    expected = theirs(
        checkpoint("flux-nano"),
        "FluxInpaintPipeline",
        size,
        prompt=OTHER,
        negative_prompt=PROMPT,
        true_cfg_scale=2.0,
        image=given,
        mask_image=mask,
        strength=0.8,
        guidance_scale=1.0,
        num_inference_steps=6,
    )
    with Pipeline.load(bundle("flux-nano"), "onnxruntime") as pipeline:
        (ours,) = pipeline.generate(
            OTHER,
            negative=PROMPT,
            true_cfg=2.0,
            image=given,
            mask=mask,
            strength=0.8,
            guidance=1.0,
            steps=6,
            seed=SEED,
        )
    assert agreement(ours, expected) >= 0.999


# The trained ones know guidance 1 alone: 30 makes nothing of them but larger rounding errors.
@pytest.mark.parametrize(
    ("name", "strength", "guidance"),
    [("fill-like", 1.0, 30.0), ("fill-like", 0.6, 30.0), ("flux-nano-fill", 1.0, 1.0)],
)
def test_fill(checkpoint: Get, bundle: Get, name: str, strength: float, guidance: float) -> None:
    size = (64, 80)
    given, mask = scene(size), hole(size)
    expected = theirs(
        checkpoint(name),
        "FluxFillPipeline",
        size,
        prompt=OTHER,
        image=given,
        mask_image=mask,
        strength=strength,
        guidance_scale=guidance,
        num_inference_steps=5,
    )
    with Pipeline.load(bundle(name), "onnxruntime") as pipeline:
        (ours,) = pipeline.generate(
            OTHER, image=given, mask=mask, strength=strength, guidance=guidance, steps=5, seed=SEED
        )
    assert agreement(ours, expected) >= 0.999


@pytest.mark.parametrize(("name", "guidance"), [("canny-like", 30.0), ("flux-nano-canny", 1.0)])
def test_control(checkpoint: Get, bundle: Get, name: str, guidance: float) -> None:
    size = (80, 48)
    given = scene(size, "white")
    expected = theirs(
        checkpoint(name),
        "FluxControlPipeline",
        size,
        prompt=OTHER,
        control_image=given,
        guidance_scale=guidance,
        num_inference_steps=5,
    )
    with Pipeline.load(bundle(name), "onnxruntime") as pipeline:
        (ours,) = pipeline.generate(OTHER, control=given, guidance=guidance, steps=5, seed=SEED)
    assert agreement(ours, expected) >= 0.999


def test_control_from_a_picture(checkpoint: Get, bundle: Get) -> None:
    size = (48, 48)
    expected = theirs(
        checkpoint("canny-like"),
        "FluxControlImg2ImgPipeline",
        size,
        prompt=OTHER,
        image=scene(size),
        control_image=scene(size, "white"),
        strength=0.5,
        guidance_scale=10.0,
        num_inference_steps=6,
    )
    with Pipeline.load(bundle("canny-like"), "onnxruntime") as pipeline:
        (ours,) = pipeline.generate(
            OTHER,
            image=scene(size),
            control=scene(size, "white"),
            strength=0.5,
            guidance=10.0,
            steps=6,
            seed=SEED,
        )
    assert agreement(ours, expected) >= 0.999


@pytest.mark.parametrize(
    ("name", "true_cfg"), [("flux-nano", None), ("flux-nano", 2.5), ("kontext-like", None)]
)
def test_reference_picture(checkpoint: Get, bundle: Get, name: str, true_cfg: float | None) -> None:
    size, given = (64, 64), scene((64, 96))
    more = {} if true_cfg is None else {"negative_prompt": OTHER, "true_cfg_scale": true_cfg}
    expected = theirs(
        checkpoint(name),
        "FluxKontextPipeline",
        size,
        prompt="make the red circle blue",
        image=given,
        guidance_scale=2.0,
        num_inference_steps=6,
        _auto_resize=False,
        **more,
    )
    with Pipeline.load(bundle(name), "onnxruntime") as pipeline:
        mine = {} if true_cfg is None else {"negative": OTHER, "true_cfg": true_cfg}
        asked = {"size": size, "guidance": 2.0, "steps": 6, "auto_resize": False, **mine}
        prompt = "make the red circle blue"
        (ours,) = pipeline.generate(prompt, reference=given, seed=SEED, **asked)
        both = pipeline.generate([prompt, prompt], reference=given, seed=[3, SEED], batch=2, **asked)
    assert agreement(ours, expected) >= 0.999
    assert agreement(both[1], expected) >= 0.999


def test_references_keep_their_order_and_do_not_know_of_the_batch(bundle: Get) -> None:
    """T = H x W x (N + 1): each reference has its own offset, so their order matters."""
    first, second = scene((64, 64)), scene((64, 64), "blue")
    with Pipeline.load(bundle("flux-nano"), "onnxruntime") as pipeline:
        asked = {"steps": 3, "guidance": 1.0, "seed": SEED}
        (ours,) = pipeline.generate(OTHER, reference=[first, second], **asked)
        (turned,) = pipeline.generate(OTHER, reference=[second, first], **asked)
        (again,) = pipeline.generate(OTHER, reference=[first, second], **asked)
        (one,) = pipeline.generate(OTHER, reference=[first], **asked)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(again))
    assert (np.asarray(ours) != np.asarray(turned)).any()
    assert (np.asarray(ours) != np.asarray(one)).any()


@pytest.mark.parametrize("name", ["flux-nano", "schnell-like"])
def test_a_schedule_of_ones_own(checkpoint: Get, bundle: Get, name: str) -> None:
    """Noise levels as the pipelines take them, and a constant shift as a scheduler of one's own has it."""
    size, sigmas = (64, 48), [1.0, 0.9, 0.55, 0.2]
    pipe = diffusers.FluxPipeline.from_pretrained(
        checkpoint(name), dtype=torch.float32, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)

    def expected(**asked: Any) -> np.ndarray:
        found = pipe(
            PROMPT,
            width=size[0],
            height=size[1],
            generator=torch.Generator().manual_seed(SEED),
            max_sequence_length=32,
            output_type="np",
            **asked,
        )
        return (found.images[0] * 255).round().astype(np.uint8)

    given = expected(sigmas=sigmas)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(
        pipe.scheduler.config, use_dynamic_shifting=False, shift=2.5
    )
    shifted, both = expected(num_inference_steps=5), expected(sigmas=sigmas)
    with Pipeline.load(bundle(name), "onnxruntime") as pipeline:

        def ours(**asked: Any) -> Image.Image:
            more = {"guidance": 3.5} if pipeline.bundle.manifest.takes("guidance") else {}
            return pipeline.generate(PROMPT, size=size, seed=SEED, **more, **asked)[0]

        assert agreement(ours(sigmas=sigmas), given) >= 0.999
        assert agreement(ours(sigmas=[*sigmas, 0]), given) >= 0.999
        assert agreement(ours(steps=5, shift=2.5), shifted) >= 0.999
        assert agreement(ours(sigmas=np.array(sigmas), shift=2.5), both) >= 0.999
        assert agreement(ours(steps=4), given) < 0.9


def test_an_image_started_late_on_a_schedule_of_ones_own(checkpoint: Get, bundle: Get) -> None:
    given, size, sigmas = scene((120, 80)), (64, 64), [1.0, 0.8, 0.7, 0.4, 0.1]
    expected = theirs(
        checkpoint("flux-nano"),
        "FluxImg2ImgPipeline",
        size,
        prompt=PROMPT,
        image=given,
        strength=0.6,
        num_inference_steps=len(sigmas),
        sigmas=sigmas,
        guidance_scale=2.0,
    )
    with Pipeline.load(bundle("flux-nano"), "onnxruntime") as pipeline:
        asked = {"image": given, "strength": 0.6, "size": size, "seed": SEED, "guidance": 2.0}
        (ours,) = pipeline.generate(PROMPT, sigmas=sigmas, **asked)
        (plain,) = pipeline.generate(PROMPT, steps=len(sigmas), **asked)
    assert agreement(ours, expected) >= 0.999
    assert agreement(plain, expected) < 0.9


def test_a_second_prompt(checkpoint: Get, bundle: Get) -> None:
    """As the pipelines' prompt_2: the first encoder reads the one, the second the other."""
    size, third, fourth = (64, 48), "a yellow triangle on a black background", "a gray cross"
    asked = {"num_inference_steps": 6, "guidance_scale": 1.5}
    plain = {"size": size, "steps": 6, "guidance": 1.5, "seed": SEED}
    expected = [
        theirs(checkpoint("flux-nano"), "FluxPipeline", size, prompt=PROMPT, **words, **asked)
        for words in (
            {"prompt_2": OTHER},
            {"negative_prompt": third, "true_cfg_scale": 3.0, "prompt_2": OTHER},
            {"negative_prompt": third, "negative_prompt_2": fourth, "true_cfg_scale": 3.0},
        )
    ]
    with Pipeline.load(bundle("flux-nano"), "onnxruntime") as pipeline:
        true = {"negative": third, "true_cfg": 3.0}
        ours = [
            *pipeline.generate([PROMPT, OTHER], prompt_2=[OTHER, PROMPT], batch=2, **plain)[:1],
            *pipeline.generate(PROMPT, prompt_2=OTHER, **true, **plain),
            *pipeline.generate(PROMPT, negative_2=fourth, **true, **plain),
        ]
        (alone,) = pipeline.generate(PROMPT, **plain)
    for image, wanted in zip(ours, expected, strict=True):
        assert agreement(image, wanted) >= 0.999
    assert agreement(alone, expected[0]) < 0.99
