"""The FLUX.3 family: what differs between its members, as data.

Sources: diffusers' modular_pipelines/flux3 and transformer_flux3.py; the public model cards.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flux_trt.exporter.families.language import Language
from flux_trt.runtime.bundle.manifest import Prompts, StageName, Task
from flux_trt.runtime.errors import CheckpointError

if TYPE_CHECKING:  # it brings torch, and the command line reads this table
    from flux_trt.exporter.families.flux3.params import Flux3Params

PARTS: Mapping[StageName, str] = {
    "text": "text",
    "time": "transformer",
    "context": "transformer",
    "references": "transformer",
    "denoiser": "transformer",
    "vae_encoder": "vae",
    "vae_decoder": "vae",
}
"""Every stage of any member, in the order that they run -> the part that it is made from."""

QWEN3_VL = Language(
    widths=(2560,),
    layers=36,
    taps=(4, 8, 12, 16, 20, 24, 28, 32),
    theta=5e6,
    eps=1e-6,
    head_dim=128,
    side="right",
    pad="<|endoftext|>",
    prefix="<|im_start|>user\n",
    suffix="<|im_end|>\n<|im_start|>assistant\n",
    system="",
    options={"add_generation_prompt": True},
    marks=("<|im_start|>", "<|im_end|>"),
    length=8192,
    multiple=80,
    # As transformers 4.57 counts them, which the model was trained with; the transformer attends padding.
    pad_place=1,
)
"""Qwen3-VL-4B-Instruct, its language model alone."""

PROMPTS = Prompts(words=100, words_of_edits=50, boxes=True)
"""As the prompt upsampler is told to write: 100 to 350 words, of edits 50 to 150."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One member of the family and how it is meant to be run."""

    name: str
    """As `--variant` takes it."""
    title: str
    """For people."""
    flow_map: bool
    """Whether a step is told where it jumps to."""
    steps: int
    guidance: float | None


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(name="base", title="Klein base", flow_map=False, steps=50, guidance=3.5),
        Variant(name="distilled", title="Klein", flow_map=True, steps=16, guidance=None),
    )
}


def variant_of(params: Flux3Params, asked: str | None = None) -> Variant:
    """The member with these tensors.

    Raises:
        CheckpointError: `asked` is another one.
    """
    (found,) = (each for each in VARIANTS.values() if each.flow_map == params.flow_map)
    if asked not in (None, found.name):
        raise CheckpointError(f"these tensors are not FLUX.3's {asked}; --variant can be {found.name}")
    return found


def tasks_of(kind: Variant, stages: Collection[StageName]) -> list[Task]:
    """What a bundle with these of all stages can do.

    A flow map's velocity is that of the whole jump: to start it anywhere but from noise is untried.
    """
    missing = set(PARTS) - set(stages)
    if missing:
        return ["generate"] if missing <= {"vae_encoder"} else []
    return (
        ["generate", "reference"] if kind.flow_map else ["generate", "image", "inpaint", "edit", "reference"]
    )
