"""The FLUX.2 family: what differs between its members, as data.

Sources: BFL's flux2 repository (README, src/flux2/util.py), diffusers' scripts/convert_flux2_to_diffusers.py,
pipelines/flux2 and its system_messages.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flux_trt.exporter.families.language import Language
from flux_trt.runtime.bundle.manifest import StageName, Task
from flux_trt.runtime.errors import CheckpointError

if TYPE_CHECKING:  # it brings torch, and the command line reads this table
    from flux_trt.exporter.families.flux2.params import Flux2Params

PARTS: Mapping[StageName, str] = {
    "text": "text",
    "conditioner": "transformer",
    "references": "transformer",
    "denoiser": "transformer",
    "vae_encoder": "vae",
    "vae_decoder": "vae",
}
"""Every stage of any member, in the order that they run -> the part that it is made from."""

PUBLISHED = {3072: "4B", 4096: "9B"}
"""Hidden size of a klein -> what it is called."""


QWEN3 = Language(
    widths=(2560, 4096),
    layers=36,
    taps=(9, 18, 27),
    theta=1e6,
    eps=1e-6,
    head_dim=128,
    side="right",
    pad="<|endoftext|>",
    prefix="<|im_start|>user\n",
    suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    system="",
    options={"add_generation_prompt": True, "enable_thinking": False},
    marks=("<|im_start|>", "<|im_end|>"),
)
_SYSTEM = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object "
    "relationships, object\nattribution and actions without speculation."
)
MISTRAL3 = Language(
    widths=(5120,),
    layers=40,
    taps=(10, 20, 30),
    theta=1e9,
    eps=1e-5,
    head_dim=128,
    # Its tokenizer_config names no side. The transformers that the model was made with pads left,
    # transformers 5 right: other positions, and another picture.
    side="left",
    pad="<pad>",
    prefix=f"<s>[SYSTEM_PROMPT]{_SYSTEM}[/SYSTEM_PROMPT][INST]",
    suffix="[/INST]",
    system=_SYSTEM,
    options={"add_generation_prompt": False},
    marks=("[INST]", "[/INST]", "[SYSTEM_PROMPT]"),
    without=("[IMG]",),
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One member of the family and how it is meant to be run."""

    name: str
    """As `--variant` takes it."""
    title: str
    """For people; a klein's size stands in it."""
    pipelines: tuple[str, ...]
    distilled: bool = False
    """Whether `model_index.json` says so, beside one of these classes."""
    guidance_embed: bool = False
    sizes: tuple[str, ...] = ("4B", "9B")
    steps: int
    guidance: float | None
    true_guidance: bool = False
    cached: bool = False
    """Whether reference pictures are attended by keys and values that are computed once."""
    language: Language = QWEN3


KLEIN = ("Flux2KleinPipeline", "Flux2KleinInpaintPipeline")
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(
            name="distilled",
            title="klein {}",
            pipelines=KLEIN,
            distilled=True,
            steps=4,
            guidance=None,
        ),
        Variant(
            name="base",
            title="klein base {}",
            pipelines=KLEIN,
            steps=50,
            guidance=4.0,
            true_guidance=True,
        ),
        Variant(
            name="kv",
            title="klein {} KV",
            pipelines=("Flux2KleinKVPipeline",),
            sizes=("9B",),
            steps=4,
            guidance=None,
            cached=True,
        ),
        Variant(
            name="dev",
            title="dev",
            pipelines=("Flux2Pipeline",),
            guidance_embed=True,
            sizes=(),
            steps=50,
            guidance=4.0,
            language=MISTRAL3,
        ),
    )
}


def size_of(params: Flux2Params) -> str | None:
    """What a klein of this size is called; None for one that is not published."""
    return PUBLISHED.get(params.hidden_size)


def candidates(
    params: Flux2Params, index: Mapping[str, Any] | None = None, asked: str | None = None
) -> list[Variant]:
    """The members with these tensors, and of this pipeline if one is named; the first is taken.

    Args:
        params: of the transformer.
        index: of `model_index.json`; where its pipeline is none of those, the tensors alone decide.
        asked: chooses one of those with these tensors.

    Raises:
        CheckpointError: `asked` is none of them.
    """
    size = size_of(params)
    fits = [
        v
        for v in VARIANTS.values()
        if v.guidance_embed == params.guidance_embed and (size is None or not v.sizes or size in v.sizes)
    ]
    if asked is not None:
        if asked not in {v.name for v in fits}:
            raise CheckpointError(
                f"these tensors are not FLUX.2's {asked}; --variant can be {', '.join(v.name for v in fits)}"
            )
        return [VARIANTS[asked]]
    name, distilled = (index or {}).get("_class_name"), bool((index or {}).get("is_distilled", False))
    named = [v for v in fits if name in v.pipelines]
    return [v for v in named if v.distilled == distilled] or named or fits


def tasks_of(parts: Collection[StageName], stages: Collection[StageName]) -> list[Task]:
    """What a bundle with these of all stages can do."""
    if missing := set(parts) - set(stages):
        return ["generate"] if missing <= {"vae_encoder"} else []
    return ["generate", "image", "inpaint", "edit", "reference"]
