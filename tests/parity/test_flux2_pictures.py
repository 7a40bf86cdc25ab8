"""FLUX.2's pictures against diffusers' pipelines: same weights, same seed, fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flux2_checkpoints as flux2
import numpy as np
import pytest
import torch
from diffusers import Flux2KleinInpaintPipeline
from given import drawn
from PIL import Image

from flux_trt.runtime import Pipeline

Get = Callable[..., Path]
PROMPTS = ("a red circle", "two green squares, side by side")


def theirs(pipe: Any, prompts: tuple[str, ...], seed: int, **asked: Any) -> np.ndarray:
    generators = [torch.Generator().manual_seed(seed + k) for k in range(len(prompts))]
    found = pipe(prompt=list(prompts), generator=generators, output_type="np", **asked)
    return (found.images * 255).round().astype(np.uint8)


def agreement(ours: list[Image.Image], expected: np.ndarray) -> float:
    """Share of values within 1/255."""
    assert expected.std() > 20, "a flat picture would agree with anything"
    difference = np.abs(np.stack([np.asarray(image) for image in ours]).astype(int) - expected)
    return float((difference <= 1).mean())


def length(kind: str) -> dict[str, Any]:
    return {
        "max_sequence_length": flux2.LENGTH["dev" if kind == "dev" else "klein"],
        "text_encoder_out_layers": flux2.TAPS,
    }


@pytest.fixture(scope="module")
def painted(flux2_bundle: Get, flux2_parts: Callable[[str], dict[str, Any]]) -> Callable[..., float]:
    """How far a bundle's pictures agree with those of diffusers' pipeline of the same member."""

    def compare(
        kind: str, size: tuple[int, int], steps: int, references: Any = (), **guidance: float
    ) -> float:
        pipe = flux2.pipeline(kind, flux2_parts(kind))
        asked = {"image": list(references)} if references else {}
        if "guidance" in guidance:
            asked["guidance_scale"] = guidance["guidance"]
        expected = theirs(
            pipe,
            PROMPTS,
            7,
            width=size[0],
            height=size[1],
            num_inference_steps=steps,
            **asked,
            **length(kind),
        )
        with Pipeline.load(flux2_bundle(kind), "onnxruntime") as pipeline:
            ours = pipeline.generate(
                PROMPTS, size=size, steps=steps, seed=7, batch=2, reference=list(references), **guidance
            )
        return agreement(ours, expected)

    return compare


@pytest.mark.parametrize(("size", "steps"), [((96, 64), 4), ((64, 112), 1), ((48, 48), 9)])
def test_distilled(painted: Callable[..., float], size: tuple[int, int], steps: int) -> None:
    assert painted("distilled", size, steps) >= 0.999


@pytest.mark.parametrize(
    ("size", "steps", "guidance"), [((96, 64), 4, 4.0), ((64, 80), 6, 2.5), ((64, 64), 3, 1.0)]
)
def test_base_is_guided_by_the_empty_prompt(
    painted: Callable[..., float], size: tuple[int, int], steps: int, guidance: float
) -> None:
    assert painted("base", size, steps, guidance=guidance) >= 0.999


@pytest.mark.parametrize(("size", "steps", "guidance"), [((96, 64), 4, 4.0), ((64, 112), 7, 2.0)])
def test_dev(painted: Callable[..., float], size: tuple[int, int], steps: int, guidance: float) -> None:
    assert painted("dev", size, steps, guidance=guidance) >= 0.999


@pytest.mark.parametrize("kind", ["distilled", "base", "dev", "kv"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_reference_pictures(painted: Callable[..., float], kind: str, count: int) -> None:
    given = [drawn(71, 100, 1), drawn(130, 66, 2)][:count]
    guidance = {"guidance": 3.0} if kind in ("base", "dev") else {}
    assert painted(kind, (80, 64), 4, given, **guidance) >= 0.999


def test_a_large_reference_is_shrunk_then_cropped_and_gives_the_size(
    flux2_bundle: Get, flux2_parts: Callable[[str], dict[str, Any]]
) -> None:
    given = drawn(1201, 1099, 3)
    pipe = flux2.pipeline("distilled", flux2_parts("distilled"))
    expected = theirs(pipe, PROMPTS[:1], 3, image=[given], num_inference_steps=1, **length("distilled"))
    with Pipeline.load(flux2_bundle("distilled"), "onnxruntime") as pipeline:
        (ours,) = pipeline.generate(PROMPTS[0], steps=1, seed=3, reference=given)
    assert ours.size == (expected.shape[2], expected.shape[1])
    assert agreement([ours], expected) >= 0.999


@pytest.mark.parametrize("kind", ["distilled", "base"])
@pytest.mark.parametrize("with_reference", [False, True])
def test_inpainting(
    flux2_bundle: Get, flux2_parts: Callable[[str], dict[str, Any]], kind: str, with_reference: bool
) -> None:
    image, reference = drawn(96, 64, 4), drawn(71, 100, 5)
    mask = Image.new("L", image.size)
    mask.paste(255, (21, 13, 75, 47))
    pipe = Flux2KleinInpaintPipeline(**flux2_parts(kind), is_distilled=kind == "distilled")
    pipe.set_progress_bar_config(disable=True)
    guidance = {} if kind == "distilled" else {"guidance": 3.0}
    asked = {"image_reference": reference} if with_reference else {}
    expected = theirs(
        pipe,
        PROMPTS,
        11,
        image=image,
        mask_image=mask,
        strength=0.8,
        num_inference_steps=5,
        guidance_scale=guidance.get("guidance", 1.0),
        **asked,
        **length(kind),
    )
    with Pipeline.load(flux2_bundle(kind), "onnxruntime") as pipeline:
        ours = pipeline.generate(
            PROMPTS,
            image=image,
            mask=mask,
            strength=0.8,
            steps=5,
            seed=11,
            batch=2,
            reference=[reference] if with_reference else [],
            **guidance,
        )
    assert agreement(ours, expected) >= 0.999
