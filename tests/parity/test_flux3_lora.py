"""LoRAs of FLUX.3 under the names of diffusers, PEFT and BFL: the weights that those make with them."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flux2_forms as forms
import flux3_checkpoints as flux3
import numpy as np
import pytest
import torch
from flux3_forms import bfl
from given import drawn

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.families.flux3.names import transformer_from_diffusers
from flux_trt.exporter.families.flux3.params import flux3_params, recipes_of
from flux_trt.exporter.families.recognise import recognise, recognise_lora
from flux_trt.runtime import Pipeline
from flux_trt.runtime.errors import CheckpointError, RequestError

Get = Callable[..., Path]
Parts = Callable[[str], dict[str, Any]]
RANK = 4
Tensors = dict[str, torch.Tensor]
IN_BLOCKS = ("q_proj", "k_proj", "v_proj", "attn_out", "mlp_in", "mlp_out")


def update(weights: Mapping[str, torch.Tensor], of: tuple[str, ...] = ("",)) -> Tensors:
    """A and B for every matrix, or for those of the modules that end so."""
    draw, found = torch.Generator().manual_seed(1), Tensors()
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if weight.ndim == 2 and module.endswith(of):
            found[f"{module}.lora_A.weight"] = 0.2 * torch.randn(RANK, weight.shape[1], generator=draw)
            found[f"{module}.lora_B.weight"] = 0.2 * torch.randn(weight.shape[0], RANK, generator=draw)
    return found


def prefixed(found: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in found.items()}


def merged(source: Path, lora: Path | str) -> Tensors:
    """The weights that a bundle is made of, under BFL's names."""
    part = recognise(open_checkpoint(str(source), lora=(str(lora),))).checkpoint.parts["transformer"]
    return {name: recipe.load(part.tensors) for name, recipe in recipes_of(part).items()}


def expect(ours: Tensors, theirs: Tensors, source: Path, changed: int) -> None:
    """Ours are diffusers' after its names, and so many are not the plain ones."""
    p, plain = flux3_params(open_checkpoint(str(source)).parts["transformer"]), bfl(source)
    recipes = transformer_from_diffusers(p.depth, p.depth_single_blocks, p.flow_map)
    assert set(ours) == set(recipes)
    for name, recipe in recipes.items():
        expected = recipe.make(*(theirs[each] for each in recipe.names))
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-5, msg=name)
    assert sum(not torch.equal(ours[name], plain[name]) for name in recipes) == changed


@pytest.mark.parametrize("form", ["diffusers", "bfl"])
@pytest.mark.parametrize("kind", flux3.KINDS)
def test_weights_are_those_of_diffusers(
    flux3_folder: Get, flux3_parts: Parts, tmp_path: Path, kind: str, form: str
) -> None:
    """Of a file of BFL's names diffusers reads what is in blocks."""
    source = flux3_folder(kind)
    if form == "diffusers":
        state = prefixed(update(flux3_parts(kind)["transformer"].state_dict()), "transformer.")
    else:
        state = prefixed(update(bfl(source), IN_BLOCKS), "diffusion_model.")
    file = forms.save(state, tmp_path / "lora.safetensors")
    pipe = flux3.pipeline(kind, flux3.parts(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_lora_weights(str(file))
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    expect(merged(source, file), pipe.transformer.state_dict(), source, len(state) // 2)


def test_a_folder_of_peft(flux3_folder: Get, tmp_path: Path) -> None:
    """With an alpha of twice the rank, and modulation and embedders too."""
    from peft import LoraConfig, get_peft_model

    source, model = flux3_folder("distilled"), flux3.parts("distilled")["transformer"]
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    wrapped = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=linear))
    torch.manual_seed(5)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    wrapped.save_pretrained(tmp_path / "peft")
    theirs = wrapped.merge_and_unload().state_dict()
    expect(merged(source, tmp_path / "peft"), theirs, source, len(linear))


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", ""])
def test_modules_that_diffusers_passes_over(flux3_folder: Get, tmp_path: Path, prefix: str) -> None:
    """Under BFL's names the last modulation has BFL's order, and so has its update; an alpha is followed."""
    source, plain = flux3_folder("distilled"), bfl(flux3_folder("distilled"))
    names = (
        "final_layer.image.adaLN_modulation.1.weight",
        "ref_time_in.in_layer.weight",
        "txt_in.weight",
        "emb_in.image_cond.weight",
        "early_stream_modulations.txt.lin.weight",
        "final_layer.image.linear.weight",
    )
    state = update({name: plain[name] for name in names})
    alphas = {f"{name.removesuffix('.weight')}.alpha": torch.tensor(2.0) for name in names}
    file = forms.save(prefixed({**state, **alphas}, prefix), tmp_path / "lora.safetensors")
    ours = merged(source, f"{file}:0.5")
    for name in plain:
        module, expected = name.removesuffix(".weight"), plain[name]
        if name in names:
            up, down = state[f"{module}.lora_B.weight"], state[f"{module}.lora_A.weight"]
            expected = expected + 0.5 * 2.0 / RANK * up @ down
        torch.testing.assert_close(ours[name], expected)


def test_a_lora_is_of_the_family_that_knows_its_keys(
    flux3_folder: Get, flux2_folder: Get, tmp_path: Path
) -> None:
    mine = prefixed(update(bfl(flux3_folder("base"))), "diffusion_model.")
    file = forms.save(mine, tmp_path / "3.safetensors")
    found = recognise_lora(file)
    assert found is not None
    assert (found[1], found[0].unknown) == ("FLUX.3", ())
    with pytest.raises(CheckpointError, match="find no place in FLUX.2|is a LoRA for FLUX.3"):
        recognise(open_checkpoint(str(flux2_folder("distilled")), lora=(str(file),)))
    other = prefixed(update(forms.bfl(flux2_folder("distilled"))), "diffusion_model.")
    file = forms.save(other, tmp_path / "2.safetensors")
    with pytest.raises(CheckpointError, match="find no place in FLUX.3|is a LoRA for FLUX.2"):
        recognise(open_checkpoint(str(flux3_folder("base")), lora=(str(file),)))


@pytest.mark.parametrize("kind", ["distilled", pytest.param("base", marks=pytest.mark.slow)])
def test_pictures_with_one_at_run_time_are_those_of_the_merged_bundle(
    flux3_folder: Get, flux3_bundle: Get, tmp_path: Path, kind: str
) -> None:
    """In every stage of the transformer: modulation, text, reference pictures, the denoiser."""
    source = flux3_folder(kind)
    state = {name: tensor / 4 for name, tensor in update(bfl(source)).items()}
    file = forms.save(prefixed(state, "diffusion_model."), tmp_path / "lora.safetensors")
    for name, more in (("merged", {"lora": [f"{file}:0.8"]}), ("branches", {"lora_rank": RANK})):
        shutil.copytree(flux3_bundle(kind), tmp_path / name)
        made = build(str(source), tmp_path / name, **more)
    assert made.adapters is not None
    assert set(made.adapters.stages) == {"time", "context", "references", "denoiser"}
    asked = {"prompt": "a fox", "size": (48, 64), "steps": 3, "reference": [drawn(64, 48, 1)]}
    with Pipeline.load(flux3_bundle(kind), "onnxruntime", "cpu") as pipeline:
        (plain,) = pipeline.generate(**asked)
        with pytest.raises(RequestError, match="--lora-rank"):
            pipeline.generate(**asked, lora=[str(file)])
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
