"""LoRA files as people published them: every key of each form finds its place in FLUX.1 at its full size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from flux_trt.exporter.families.flux1.flux1 import Flux1
from flux_trt.exporter.families.flux1.names import transformer_from_diffusers
from flux_trt.runtime.errors import CheckpointError
from flux_trt.runtime.lora import fit
from flux_trt.runtime.lora.file import read_lora
from flux_trt.runtime.lora.term import Asked

LISTS = Path(__file__).parents[1] / "official" / "loras"
MADE_OF = {
    "flux1-control": ("bare", {"set": 152, "biases": 314, "LoRA": 314}, {"transformer": 466}),
    "onetrainer-dora": ("OneTrainer", {"DoRA": 506}, {"transformer": 266, "t5": 168, "clip": 72}),
    "ai-toolkit": ("ComfyUI", {"LoRA": 228}, {"transformer": 228}),
    "peft-base-model": ("PEFT", {"LoRA": 381}, {"transformer": 381}),
    "diffusers": ("diffusers", {"LoRA": 494}, {"transformer": 494}),
    "diffusers-no-proj-mlp": ("diffusers", {"LoRA": 342}, {"transformer": 342}),
    "kohya": ("kohya", {"LoRA": 304}, {"transformer": 304}),
    "kohya-te1": ("kohya", {"LoRA": 376}, {"transformer": 304, "clip": 72}),
    "xlabs": ("XLabs", {"LoRA": 12}, {"transformer": 12}),
}


def published(name: str) -> dict[str, list[int]]:
    """Key -> shape."""
    found = {}
    for key, shape, blocks in json.loads((LISTS / f"{name}.json").read_text())["tensors"]:
        if blocks is None:
            found[key] = shape
            continue
        for span in blocks.split(","):
            first, _, last = span.partition("-")
            found |= {key.format(i): shape for i in range(int(first), int(last or first) + 1)}
    return found


def sparse(path: Path, shapes: dict[str, list[int]]) -> Path:
    """A file of these tensors in bf16, 1.0 in each alpha and as the first number of all others."""
    header, end, starts = {}, 0, []
    for name, shape in shapes.items():
        starts.append(end)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * math.prod(shape)]}
        end += 2 * math.prod(shape)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for start in starts:
            file.seek(8 + len(text) + start)
            file.write(b"\x80\x3f")
    return path


@pytest.mark.parametrize("name", MADE_OF)
def test_every_key_is_understood(name: str, tmp_path: Path) -> None:
    path = sparse(tmp_path / f"{name}.safetensors", published(name))
    found = read_lora(Asked(path), Flux1.modules(None), "FLUX.1")
    assert (found.form, found.kinds, found.targets) == MADE_OF[name]
    assert not found.unknown and not found.notes


def test_the_table_has_every_list() -> None:
    assert {path.stem for path in LISTS.glob("*.json") if not path.stem.startswith("other-")} == set(MADE_OF)


@pytest.mark.parametrize("name", MADE_OF)
def test_shapes_are_flux1s(name: str, tmp_path: Path) -> None:
    """Every term of the transformer makes a matrix of the size of the rows that it is for."""
    path = sparse(tmp_path / f"{name}.safetensors", published(name))
    found = read_lora(Asked(path), Flux1.modules(None), "FLUX.1")
    shapes = {"transformer": full_size()}
    wide = fit.widened(found, shapes)
    assert wide == ({"img_in.weight": (3072, 128)} if name == "flux1-control" else {})
    own = shapes["transformer"] | wide
    assert not [
        (term.module, why)
        for term in found.terms
        if (why := fit._misfit(term, own)) and term.place.part == "transformer"
    ]


def full_size() -> dict[str, tuple[int, ...]]:
    """BFL's parameters of FLUX.1 dev -> shapes, by diffusers' own model on the meta device."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    state = model.state_dict()
    recipes = transformer_from_diffusers(19, 38, True)
    return {
        name: tuple(recipe.make(*(state[each] for each in recipe.names)).shape)
        for name, recipe in recipes.items()
    }


@pytest.mark.parametrize(
    ("name", "model"), [("qwen-image", "Qwen-Image"), ("krea-2", "Krea 2"), ("anima", "Anima or Cosmos")]
)
def test_other_models_are_named(name: str, model: str, tmp_path: Path) -> None:
    path = sparse(tmp_path / "other.safetensors", published(f"other-{name}"))
    with pytest.raises(CheckpointError, match=f"is a LoRA for {model} .*; give one for FLUX.1"):
        read_lora(Asked(path), Flux1.modules(None), "FLUX.1")
