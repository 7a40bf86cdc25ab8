"""The FLUX.1 family: what differs between its members, as data.

Sources: BFL's src/flux/util.py and the model cards; diffusers' pipeline defaults where they agree with them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flux_trt.runtime.bundle.manifest import StageName, Task
from flux_trt.runtime.bundle.rules import Preferred, References
from flux_trt.runtime.errors import CheckpointError

if TYPE_CHECKING:  # it brings torch, and the command line reads this table
    from flux_trt.exporter.families.flux1.params import FluxParams

CHANNELS = 64
"""Of a latent token; what a variant takes beyond them is its condition."""

REFERENCES = References(
    enters="latents",
    size=Preferred(
        sizes=[
            [672, 1568],
            [688, 1504],
            [720, 1456],
            [752, 1392],
            [800, 1328],
            [832, 1248],
            [880, 1184],
            [944, 1104],
            [1024, 1024],
            [1104, 944],
            [1184, 880],
            [1248, 832],
            [1328, 800],
            [1392, 752],
            [1456, 720],
            [1504, 688],
            [1568, 672],
        ],
        area=1024 * 1024,
    ),
)
"""What FLUX.1 Kontext was trained on. Source: diffusers, PREFERRED_KONTEXT_RESOLUTIONS."""

PARTS: Mapping[StageName, str] = {
    "clip": "clip",
    "t5": "t5",
    "conditioner": "transformer",
    "denoiser": "transformer",
    "vae_encoder": "vae",
    "vae_decoder": "vae",
}
"""Every stage, in the order that they run -> the part of a checkpoint that it is made from."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One member of the family and how it is meant to be run."""

    name: str
    pipeline: str
    in_channels: int
    guidance_embed: bool
    steps: int
    guidance: float
    text_length: int = 512
    shifting: bool = True
    references: bool = False
    """Whether it was trained to follow reference pictures."""


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            name="dev", pipeline="FluxPipeline", in_channels=64, guidance_embed=True, steps=28, guidance=3.5
        ),
        Variant(
            name="krea", pipeline="FluxPipeline", in_channels=64, guidance_embed=True, steps=28, guidance=4.5
        ),
        Variant(
            name="schnell",
            pipeline="FluxPipeline",
            in_channels=64,
            guidance_embed=False,
            steps=4,
            guidance=0.0,
            text_length=256,
            shifting=False,
        ),
        Variant(
            name="dedistilled",
            pipeline="FluxPipeline",
            in_channels=64,
            guidance_embed=False,
            steps=28,
            guidance=0.0,
        ),
        Variant(
            name="kontext",
            pipeline="FluxKontextPipeline",
            in_channels=64,
            guidance_embed=True,
            steps=28,
            guidance=2.5,
            references=True,
        ),
        Variant(
            name="fill",
            pipeline="FluxFillPipeline",
            in_channels=384,
            guidance_embed=True,
            steps=50,
            guidance=30.0,
        ),
        Variant(
            name="canny",
            pipeline="FluxControlPipeline",
            in_channels=128,
            guidance_embed=True,
            steps=50,
            guidance=30.0,
        ),
        Variant(
            name="depth",
            pipeline="FluxControlPipeline",
            in_channels=128,
            guidance_embed=True,
            steps=30,
            guidance=10.0,
        ),
    )
}


def candidates(
    params: FluxParams,
    pipeline: str | None = None,
    asked: str | None = None,
    shifting: bool | None = None,
) -> list[Variant]:
    """The variants with these tensors, and this pipeline class if one is named; the first is taken.

    Several members have the same tensors (dev, Krea and Kontext; Canny and Depth; schnell and what was
    trained to do without distilled guidance) and some the same pipeline. Where none fits the pipeline or the
    schedule, the tensors alone decide.

    Args:
        params: of the transformer.
        pipeline: class that `model_index.json` names.
        asked: chooses one of those with these tensors.
        shifting: whether the scheduler's config shifts by size; None: there is none.

    Raises:
        CheckpointError: no variant has such tensors, or `asked` is none of those that have.
    """
    shape = (params.in_channels, params.guidance_embed)
    fits = [v for v in VARIANTS.values() if (v.in_channels, v.guidance_embed) == shape]
    if not fits:
        raise CheckpointError(
            f"no FLUX.1 variant has {params.in_channels} input channels and "
            f"{'a' if params.guidance_embed else 'no'} guidance embedding; check that this is FLUX.1"
        )
    if asked is not None:
        if asked not in {v.name for v in fits}:
            raise CheckpointError(
                f"these tensors are not FLUX.1 {asked}; --variant can be {', '.join(v.name for v in fits)}"
            )
        return [VARIANTS[asked]]
    fits = [v for v in fits if v.pipeline == pipeline] or fits
    return [v for v in fits if shifting in (None, v.shifting)] or fits


def tasks_of(variant: Variant, stages: Collection[StageName]) -> list[Task]:
    """What a bundle of this variant with these stages can do."""
    condition = variant.in_channels - CHANNELS
    if missing := set(PARTS) - set(stages):
        return ["generate"] if missing == {"vae_encoder"} and not condition else []
    if condition:
        return ["control"] if condition == CHANNELS else ["fill"]
    plain: list[Task] = ["generate", "image", "inpaint", "edit"]
    return [*plain, "reference"] if variant.references else plain
