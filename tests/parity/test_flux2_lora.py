"""LoRAs of FLUX.2 under diffusers' and BFL's names: the weights that diffusers makes with them."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flux2_checkpoints as flux2
import flux2_forms as forms
import numpy as np
import pytest
import torch
from PIL import Image

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.families.flux2.names import transformer_from_diffusers
from flux_trt.exporter.families.flux2.params import flux2_params, recipes_of
from flux_trt.exporter.families.recognise import recognise, recognise_lora
from flux_trt.runtime import Pipeline
from flux_trt.runtime.errors import CheckpointError

Get = Callable[..., Path]
RANK = 4
Tensors = dict[str, torch.Tensor]


def update(weights: Tensors, skip: tuple[str, ...] = ()) -> Tensors:
    """A and B for every matrix."""
    draw, found = torch.Generator().manual_seed(1), Tensors()
    for name, weight in weights.items():
        if weight.ndim == 2 and not name.startswith(skip or ("-",)):
            module = name.removesuffix(".weight")
            found[f"{module}.lora_A.weight"] = 0.2 * torch.randn(RANK, weight.shape[1], generator=draw)
            found[f"{module}.lora_B.weight"] = 0.2 * torch.randn(weight.shape[0], RANK, generator=draw)
    return found


def prefixed(found: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in found.items()}


@pytest.mark.parametrize("form", ["diffusers", "bfl"])
@pytest.mark.parametrize("kind", ["distilled", "dev"])
def test_weights_are_those_of_diffusers(
    flux2_folder: Get, flux2_parts: Callable[[str], dict[str, Any]], tmp_path: Path, kind: str, form: str
) -> None:
    source = flux2_folder(kind)
    if form == "diffusers":
        state = prefixed(update(flux2_parts(kind)["transformer"].state_dict()), "transformer.")
    else:  # diffusers forgets to swap the halves of adaLN's update, so it is left out
        state = prefixed(update(forms.bfl(source), ("final_layer.adaLN",)), "diffusion_model.")
    file = forms.save(state, tmp_path / "lora.safetensors")
    model = recognise(open_checkpoint(str(source), lora=(str(file),)))
    part = model.checkpoint.parts["transformer"]
    ours = {name: recipe.load(part.tensors) for name, recipe in recipes_of(part).items()}

    pipe = flux2.pipeline(kind, flux2.parts(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_lora_weights(str(file))
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    theirs = pipe.transformer.state_dict()
    p = flux2_params(part)
    recipes = transformer_from_diffusers(p.depth, p.depth_single_blocks, p.guidance_embed)
    plain = forms.bfl(source)
    for name, recipe in recipes.items():
        expected = recipe.make(*(theirs[each] for each in recipe.names))
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-5, msg=name)
    changed = [name for name in recipes if not torch.equal(ours[name], plain[name])]
    assert len(changed) >= 20


def test_a_file_of_bfls_names_swaps_nothing(flux2_folder: Get, tmp_path: Path) -> None:
    """Of the last modulation the weights have BFL's order, and so has the update."""
    source, name = flux2_folder("distilled"), "final_layer.adaLN_modulation.1.weight"
    plain = forms.bfl(source)
    state = update({name: plain[name]})
    file = forms.save(prefixed(state, "diffusion_model."), tmp_path / "lora.safetensors")
    part = recognise(open_checkpoint(str(source), lora=(str(file),))).checkpoint.parts["transformer"]
    down, up = state.values()
    torch.testing.assert_close(recipes_of(part)[name].load(part.tensors), plain[name] + up @ down)


def test_a_lora_by_itself_is_of_the_family_that_knows_its_keys(
    flux2_folder: Get, checkpoint: Get, tmp_path: Path
) -> None:
    import loras

    mine = forms.save(
        prefixed(update(forms.bfl(flux2_folder("distilled"))), "diffusion_model."), tmp_path / "2.safetensors"
    )
    source = checkpoint("flux-nano")
    other = loras.save(tmp_path / "1.safetensors", (loras.peft(source, loras.update(source))[0], {}))
    for file, family in ((mine, "FLUX.2"), (other, "FLUX.1")):
        found = recognise_lora(file)
        assert found is not None
        assert (found[1], found[0].unknown) == (family, ())


def test_a_lora_of_the_other_family_is_refused(flux2_folder: Get, checkpoint: Get, tmp_path: Path) -> None:
    import loras

    source = checkpoint("flux-nano")
    file = loras.save(tmp_path / "1.safetensors", (loras.peft(source, loras.update(source))[0], {}))
    with pytest.raises(CheckpointError, match="find no place in FLUX.2"):
        recognise(open_checkpoint(str(flux2_folder("distilled")), lora=(str(file),)))


@pytest.mark.parametrize("kind", ["distilled", "kv"])
def test_pictures_with_one_at_run_time_are_those_of_the_merged_bundle(
    flux2_folder: Get, flux2_bundle: Get, tmp_path: Path, kind: str
) -> None:
    """Also where a stage makes keys of reference pictures, which are not kept for another LoRA."""
    source, rng = flux2_folder(kind), np.random.default_rng(0)
    state = {name: tensor / 4 for name, tensor in update(forms.bfl(source)).items()}
    file = forms.save(prefixed(state, "diffusion_model."), tmp_path / "lora.safetensors")
    for name, more in (("merged", {"lora": [f"{file}:0.8"]}), ("branches", {"lora_rank": RANK})):
        shutil.copytree(flux2_bundle(kind), tmp_path / name)
        build(str(source), tmp_path / name, **more)
    picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    asked = {"prompt": "a fox", "size": (64, 64), "steps": 3, "reference": [picture], "auto_resize": False}
    with Pipeline.load(flux2_bundle(kind), "onnxruntime", "cpu") as pipeline:
        (plain,) = pipeline.generate(**asked)
    with Pipeline.load(tmp_path / "merged", "onnxruntime", "cpu") as pipeline:
        (expected,) = pipeline.generate(**asked)
    with Pipeline.load(tmp_path / "branches", "onnxruntime", "cpu") as pipeline:
        before, found, after = (
            np.asarray(pipeline.generate(**asked, lora=loras)[0]).astype(int)
            for loras in ([], [(file, 0.8)], [])
        )
    np.testing.assert_array_equal(before, np.asarray(plain))
    np.testing.assert_array_equal(after, np.asarray(plain))
    assert (np.abs(found - np.asarray(expected).astype(int)) > 1).mean() < 1e-3
    assert (np.abs(found - before) > 1).mean() > 0.2, "the LoRA is not seen"
