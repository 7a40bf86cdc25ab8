"""LoRA files written by the tools themselves, beside the weights that the tools make of them.

LyCORIS' modules are given random values, and are asked what they make of the unit vectors: their `forward` is
what was trained (`get_merged_weight` of LyCORIS 4.1.3 applies the scale of LoHa and LoKr twice). diffusers'
model gets PEFT's adapters, saves them with `save_lora_weights`, and fuses them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loras
import lycoris.modules as lycoris
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from loras import State
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn

from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.families.flux1 import reference
from flux_trt.exporter.families.lora_oracle import FUSED, MERGED
from flux_trt.exporter.families.recognise import recognise

Get = Callable[[str], Path]
NEAR = 2e-6
QKV, LINEAR1 = "double_blocks.0.img_attn.qkv", "single_blocks.1.linear1"
MODULES = (
    "transformer_blocks.0.attn.to_k",
    "single_transformer_blocks.1.proj_mlp",
    "norm_out.linear",
)
"""diffusers' modules: some rows of a parameter, and one whose halves are swapped."""


@pytest.fixture(scope="module")
def source(checkpoint: Get) -> Path:
    return checkpoint("dev-like")


def merged(source: Path, *wanted: str) -> Any:
    return recognise(open_checkpoint(str(source), lora=wanted)).checkpoint.parts["transformer"]


def off(part: Any, wanted: State) -> float:
    return max(
        float((part.tensors[name].read().double() - each).abs().max()) for name, each in wanted.items()
    )


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoCon": ("LoConModule", {}),
    "LoHa": ("LohaModule", {}),
    "LoKr": ("LokrModule", {"factor": 4}),
    "LoKr, both decomposed": ("LokrModule", {"factor": 8, "decompose_both": True, "lora_dim": 2}),
    "LoKr, full": ("LokrModule", {"factor": 4, "full_matrix": True}),
    "LoKr, rank-stabilised": ("LokrModule", {"factor": 4, "rs_lora": True}),
    "full": ("FullModule", {}),
    "DoRA by rows": ("LoConModule", {"weight_decompose": True, "wd_on_out": True}),
    "DoRA by columns": ("LoConModule", {"weight_decompose": True, "wd_on_out": False}),
    "DoHa": ("LohaModule", {"weight_decompose": True, "wd_on_out": False}),
    "DoKr": ("LokrModule", {"factor": 4, "weight_decompose": True, "wd_on_out": True}),
}


def by_lycoris(kind: str, state: State, name: str, seed: int) -> nn.Module:
    """A module of LyCORIS around a linear layer, none of its values neutral; alpha is not the rank."""
    weight = state[f"{name}.weight"]
    name, options, bias = *KINDS[kind], state[f"{name}.bias"]
    layer = nn.Linear(*weight.shape[::-1])
    layer.weight.data, layer.bias.data = weight.float(), bias.float()
    torch.manual_seed(seed)
    module = getattr(lycoris, name)("x", layer, 1.0, **({"lora_dim": 4, "alpha": 6.0} | options))
    for parameter in module.parameters():
        if parameter is not layer.weight and parameter is not layer.bias:
            parameter.data += 0.1 * torch.randn_like(parameter)
    if isinstance(module, lycoris.FullModule):
        module.apply_to()  # only then what it saves is a difference
    return module


@torch.no_grad()
def in_use(module: nn.Module, name: str, strength: float = 1.0) -> State:
    """The layer with the module in it, by what it makes of zero and of the unit vectors."""
    if isinstance(module, lycoris.FullModule):
        weight, bias = module.get_merged_weight(multiplier=strength)
        return {f"{name}.weight": weight.detach(), f"{name}.bias": bias.detach()}
    module.multiplier = strength
    module.apply_to()
    width = module.org_module[0].in_features
    layer = module.org_module[0].double()
    module.double()
    bias = layer(torch.zeros(1, width, dtype=torch.float64))
    weight = (layer(torch.eye(width, dtype=torch.float64)) - bias).T
    return {f"{name}.weight": weight, f"{name}.bias": bias[0]}


@pytest.mark.parametrize(
    ("kind", "strength"),
    [(kind, 1.0) for kind in KINDS] + [(kind, 0.5) for kind in KINDS if not kind.startswith("Do")],
)
def test_lycoris_on_diffusers_modules(kind: str, strength: float, source: Path, tmp_path: Path) -> None:
    """A DoRA at another strength is defined by what it is at 1: the test after the next."""
    state, changed, base = {}, {}, loras.theirs(source)
    for seed, name in enumerate(MODULES):
        module = by_lycoris(kind, base, name, seed)
        key = "lycoris_" + name.replace(".", "_")
        state |= {f"{key}.{role}": each.detach() for role, each in module.custom_state_dict().items()}
        changed |= in_use(module, name, strength)
    path = loras.save(tmp_path / "lycoris.safetensors", (state, {}))
    assert off(merged(source, f"{path}:{strength}"), loras.ours(source, changed)) < NEAR


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
def test_lycoris_on_fused_projections(kind: str, prefix: str, source: Path, tmp_path: Path) -> None:
    """A Kronecker product or a norm over columns of q, k and v in one is none of the three apart."""
    state, wanted = {}, loras.ours(source, {})
    for seed, name in enumerate((QKV, LINEAR1)):
        module = by_lycoris(kind, wanted, name, seed)
        key = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
        state |= {f"{key}.{role}": each.detach() for role, each in module.custom_state_dict().items()}
        wanted |= in_use(module, name)
    path = loras.save(tmp_path / "lycoris.safetensors", (state, {}))
    assert off(merged(source, str(path)), wanted) < NEAR


def test_a_dora_at_half_strength_is_half_the_way(source: Path, tmp_path: Path) -> None:
    module = by_lycoris("DoRA by columns", loras.ours(source, {}), QKV, 0)
    state = {f"diffusion_model.{QKV}.{role}": each for role, each in module.custom_state_dict().items()}
    path = loras.save(tmp_path / "dora.safetensors", ({k: v.detach() for k, v in state.items()}, {}))
    plain, whole = loras.ours(source, {}), merged(source, str(path)).tensors[f"{QKV}.weight"].read().double()
    half = {f"{QKV}.weight": (plain[f"{QKV}.weight"] + whole) / 2}
    assert off(merged(source, f"{path}:0.5"), half) < NEAR


PEFT = {
    "plain": {"r": 4, "lora_alpha": 6},
    "rank-stabilised": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"attn.to_q": 2, "proj_mlp": 3},
        "alpha_pattern": {"attn.to_q": 5, "transformer_blocks.0.norm1.linear": 9},
    },
    "DoRA": {"r": 4, "lora_alpha": 6, "use_dora": True},
    "biases": {"r": 4, "lora_alpha": 4, "lora_bias": True},
}


def by_peft(source: Path, folder: Path, seed: int = 0, **options: Any) -> FluxTransformer2DModel:
    """diffusers' model with a random adapter, which is saved to `folder` as diffusers does."""
    model = FluxTransformer2DModel.from_pretrained(source / "transformer", torch_dtype=torch.float32)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    torch.manual_seed(seed)
    model.add_adapter(LoraConfig(target_modules=linear, init_lora_weights=False, **options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bias is a vector, and PEFT wonders
        adapter = get_peft_model_state_dict(model)
    FluxPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=adapter,
        transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )
    return model


def fused(model: FluxTransformer2DModel) -> State:
    with torch.no_grad():
        model.fuse_lora(safe_fusing=True)
    state = {name.replace(".base_layer", ""): each for name, each in model.state_dict().items()}
    return {name: each for name, each in state.items() if "lora_" not in name}


@pytest.mark.parametrize("settings", PEFT)
def test_what_diffusers_saves(settings: str, source: Path, tmp_path: Path) -> None:
    model = by_peft(source, tmp_path, **PEFT[settings])
    part = merged(source, str(tmp_path))
    assert off(part, loras.ours(source, fused(model))) < NEAR
    assert part.loras[0].scaled_by == "metadata"


@pytest.mark.parametrize("settings", PEFT)
def test_the_oracle_is_diffusers_where_it_reads_the_file(settings: str, source: Path, tmp_path: Path) -> None:
    """Its loader reads the settings that its own saver wrote, and fuses the same weights."""
    by_peft(source, tmp_path, **PEFT[settings])
    part = merged(source, str(tmp_path))
    model, oracle = reference.transformer(part)
    ours = f"diffusers, weights read by flux_trt, {MERGED}"
    assert oracle == (ours if settings == "biases" else f"diffusers, {FUSED}")
    state = {name.replace(".base_layer", ""): each for name, each in model.state_dict().items()}
    plain = {name: each for name, each in state.items() if "lora_" not in name}
    assert off(part, loras.ours(source, plain)) < NEAR


def test_the_oracle_adds_several_at_their_strengths(source: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        by_peft(source, tmp_path / name, seed, **PEFT["plain"])
    part = merged(source, f"{tmp_path / 'one'}:0.6", f"{tmp_path / 'two'}:-0.25")
    model, oracle = reference.transformer(part)
    assert oracle == f"diffusers, {FUSED}"
    state = {name.replace(".base_layer", ""): each for name, each in model.state_dict().items()}
    plain = {name: each for name, each in state.items() if "lora_" not in name}
    assert off(part, loras.ours(source, plain)) < NEAR


@pytest.mark.parametrize(
    ("form", "oracle"),
    [
        ("peft", f"diffusers, {FUSED}"),
        ("old_suffixes", f"diffusers, weights read by flux_trt, {MERGED}"),
        ("comfy", f"diffusers, weights read by flux_trt, {MERGED}"),
        ("kohya", f"diffusers, weights read by flux_trt, {MERGED}"),
        ("lokr", f"diffusers, weights read by flux_trt, {MERGED}"),
    ],
)
def test_the_oracle_says_who_merged(form: str, oracle: str, source: Path, tmp_path: Path) -> None:
    path = loras.save(tmp_path / "a.safetensors", loras.FORMS[form](source, loras.update(source)))
    assert reference.transformer(merged(source, str(path)))[1] == oracle


@pytest.mark.parametrize("form", ["xlabs", "onetrainer attention"])
def test_forms_that_diffusers_converts(form: str, source: Path, tmp_path: Path) -> None:
    """The oracle is diffusers' own converter."""
    if form == "xlabs":
        state = loras.xlabs(source)[0]
    else:
        made = {name: pair for name, pair in loras.update(source).items() if ".attn." in name}
        state = loras.onetrainer(source, made)[0]
    path = loras.save(tmp_path / "a.safetensors", (state, {}))
    part = merged(source, f"{path}:0.5")
    model, oracle = reference.transformer(part)
    assert oracle == f"diffusers, {FUSED}"
    state = {name.replace(".base_layer", ""): each for name, each in model.state_dict().items()}
    plain = {name: each for name, each in state.items() if "lora_" not in name}
    assert off(part, loras.ours(source, plain)) < NEAR
