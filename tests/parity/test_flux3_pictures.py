"""FLUX.3's pictures against diffusers' modular pipelines: same weights, same seed, fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flux3_checkpoints as flux3
import numpy as np
import pytest
from flux3_checkpoints import LONG, SHORT
from given import drawn
from PIL import Image

from flux_trt.runtime import Pipeline

Get = Callable[..., Path]


def agreement(ours: list[Image.Image], expected: list[np.ndarray]) -> float:
    """Share of values within 1/255."""
    assert min(each.std() for each in expected) > 20, "a flat picture would agree with anything"
    shares = []
    for one, other in zip(ours, expected, strict=True):
        assert one.size == (other.shape[1], other.shape[0])
        shares.append(float((np.abs(np.asarray(one).astype(int) - other) <= 1).mean()))
    return min(shares)


@pytest.fixture(scope="module")
def painted(flux3_bundle: Get, flux3_parts: Callable[[str], dict[str, Any]]) -> Callable[..., float]:
    """How far a bundle's pictures agree with those of diffusers' pipeline of the same member."""

    def compare(
        kind: str,
        prompts: tuple[str, ...],
        size: tuple[int, int] | None,
        steps: int,
        references: tuple[Image.Image, ...] = (),
        **guidance: float,
    ) -> float:
        asked: dict[str, Any] = {}
        if references:
            asked["image"] = list(references)
        if size is not None:
            asked |= {"width": size[0], "height": size[1]}
        expected = flux3.painted(
            kind,
            flux3_parts(kind),
            prompts,
            7,
            guidance.get("guidance"),
            num_inference_steps=steps,
            **asked,
        )
        with Pipeline.load(flux3_bundle(kind), "onnxruntime") as pipeline:
            ours = pipeline.generate(
                prompts, size=size, steps=steps, seed=7, batch=2, reference=list(references), **guidance
            )
        return agreement(ours, expected)

    return compare


@pytest.mark.parametrize(
    ("prompts", "size", "steps", "guidance"),
    [
        (SHORT, (96, 64), 4, 3.5),  # prompt and negative prompt in windows of 80, painted as one batch
        (LONG, (64, 112), 3, 3.5),  # the second one's are of different lengths
        (LONG[1:] * 2, (48, 80), 5, 2.0),  # so are those of a whole batch
        (SHORT, (64, 64), 3, 1.0),
    ],
)
def test_base_is_guided_by_the_empty_prompt(
    painted: Callable[..., float],
    prompts: tuple[str, ...],
    size: tuple[int, int],
    steps: int,
    guidance: float,
) -> None:
    assert painted("base", prompts, size, steps, guidance=guidance) >= 0.999


@pytest.mark.parametrize(
    ("prompts", "size", "steps"), [(SHORT, (96, 64), 4), (LONG, (48, 112), 7), (SHORT, (64, 64), 1)]
)
def test_a_step_of_the_distilled_is_told_where_it_jumps_to(
    painted: Callable[..., float], prompts: tuple[str, ...], size: tuple[int, int], steps: int
) -> None:
    assert painted("distilled", prompts, size, steps) >= 0.999


@pytest.mark.parametrize("kind", flux3.KINDS)
@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ([(71, 100)], None),  # on a canvas of 80x112, cropped back
        ([(71, 100)], (80, 64)),
        ([(9, 12)], None),  # less than a patch: on a canvas of 64x64, mirrored with its edge
        ([(71, 100), (130, 66)], None),
        ([(48, 48), (64, 40), (33, 17)], (64, 96)),
    ],
)
def test_reference_pictures(
    painted: Callable[..., float], kind: str, sizes: list[tuple[int, int]], size: tuple[int, int] | None
) -> None:
    given = tuple(drawn(*each, seed) for seed, each in enumerate(sizes))
    assert painted(kind, LONG, size, 3, given) >= 0.999


def test_a_reference_picture_changes_what_is_painted(flux3_bundle: Get) -> None:
    for kind in flux3.KINDS:
        with Pipeline.load(flux3_bundle(kind), "onnxruntime") as pipeline:
            found = [
                np.asarray(pipeline.generate(SHORT[0], size=(64, 64), steps=3, reference=given)[0]).astype(
                    int
                )
                for given in ([], [drawn(64, 64, 1)], [drawn(64, 64, 2)])
            ]
        for one, other in ((0, 1), (1, 2)):
            assert (np.abs(found[one] - found[other]) > 1).mean() > 0.1


@pytest.mark.parametrize("memory", ["resident", "sequential"])
def test_a_picture_is_the_same_in_any_company(flux3_bundle: Get, memory: Any) -> None:
    """Neighbours of other lengths, batches and memory modes change no value."""
    given = [drawn(48, 48, 1), drawn(64, 48, 2)]
    for kind in flux3.KINDS:
        with Pipeline.load(flux3_bundle(kind), "onnxruntime", memory=memory) as pipeline:
            together = pipeline.generate(LONG, size=(48, 64), steps=2, seed=3, batch=2, reference=given)
            alone = [
                pipeline.generate(each, size=(48, 64), steps=2, seed=3 + k, reference=given)[0]
                for k, each in enumerate(LONG)
            ]
        for one, other in zip(together, alone, strict=True):
            assert np.array_equal(np.asarray(one), np.asarray(other))
