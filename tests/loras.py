"""LoRA files as the tools write them, all of one random update, and what they make of the weights.

An update has for every module of diffusers' transformer A [r, in] and B [out, r]; the forms are that update
under other names, fused, split, with its scale elsewhere. Which keys a form has: the sources named in
`exporter/checkpoints/lora`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.checkpoints.recipe import Concat, SwapHalves
from flux_trt.exporter.families.flux1.names import transformer_from_diffusers
from flux_trt.exporter.families.flux1.params import flux_params

State = dict[str, Tensor]
RANK = 4
ALPHA = 6.0
"""Not the rank: a scale that is forgotten shows."""


def recipes(source: Path) -> dict:
    p = flux_params(open_checkpoint(str(source)).parts["transformer"])
    found = transformer_from_diffusers(p.depth, p.depth_single_blocks, p.guidance_embed)
    return {name: recipe for name, recipe in found.items() if name.endswith(".weight")}


def theirs(source: Path) -> State:
    """The transformer's tensors under diffusers' names, float32."""
    (path,) = (source / "transformer").glob("*.safetensors")
    return {name: tensor.float() for name, tensor in load_file(path).items()}


def update(source: Path, seed: int = 0, size: float = 0.05) -> dict[str, tuple[Tensor, Tensor]]:
    """diffusers' module -> A, B."""
    draw, state = torch.Generator().manual_seed(seed), theirs(source)
    modules = [name.removesuffix(".weight") for recipe in recipes(source).values() for name in recipe.names]
    return {
        name: tuple(
            size * torch.randn(shape, generator=draw)
            for shape in ((RANK, state[f"{name}.weight"].shape[1]), (state[f"{name}.weight"].shape[0], RANK))
        )
        for name in modules
    }


def ours(source: Path, changed: Mapping[str, Tensor]) -> State:
    """BFL's parameters of diffusers' tensors, those in `changed` in the place of the checkpoint's, float64."""
    state = {name: tensor.double() for name, tensor in (theirs(source) | dict(changed)).items()}
    p = flux_params(open_checkpoint(str(source)).parts["transformer"])
    every = transformer_from_diffusers(p.depth, p.depth_single_blocks, p.guidance_embed)
    return {name: recipe.make(*(state[each] for each in recipe.names)) for name, recipe in every.items()}


def exact(source: Path, made: Mapping[str, tuple[Tensor, Tensor]], scale: float = 1.0) -> State:
    """BFL's parameters with the update in them, float64."""
    state = theirs(source)
    return ours(
        source,
        {
            f"{name}.weight": state[f"{name}.weight"].double() + scale * (up.double() @ down.double())
            for name, (down, up) in made.items()
        },
    )


def fused(source: Path, made: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """BFL's module -> A, B: of fused projections A one below another and B block-diagonal."""
    found = {}
    for name, recipe in recipes(source).items():
        modules = [each.removesuffix(".weight") for each in recipe.names]
        if any(module not in made for module in modules):
            continue
        down = torch.cat([made[module][0] for module in modules])
        up = torch.block_diag(*(made[module][1] for module in modules))
        if isinstance(recipe, SwapHalves):
            up = torch.cat(up.chunk(2)[::-1])
        found[name.removesuffix(".weight")] = (down, up)
    return found


def scaled(names: str, pair: tuple[Tensor, Tensor], dot: str = ".") -> State:
    """`lora_down`, `lora_up` and `alpha`: ALPHA times what the pair is, so 1 / ALPHA of it in `up`."""
    down, up = pair
    rank = down.shape[0]
    alpha = ALPHA * rank / RANK
    return {
        f"{names}.lora_down.weight": down,
        f"{names}.lora_up.weight": up * (rank / alpha),
        f"{names}.alpha": torch.tensor(alpha),
    }


def plain(name: str, pair: tuple[Tensor, Tensor], adapter: str = "") -> State:
    return {f"{name}.lora_A{adapter}.weight": pair[0], f"{name}.lora_B{adapter}.weight": pair[1]}


Made = dict[str, tuple[Tensor, Tensor]]
Written = tuple[State, dict[str, str]]


def peft(source: Path, made: Made) -> Written:
    return {k: v for name, pair in made.items() for k, v in plain(f"transformer.{name}", pair).items()}, {}


def peft_with_metadata(source: Path, made: Made) -> Written:
    """As diffusers' `save_lora_weights` writes it with its settings: alpha in the header."""
    state = {
        k: v
        for name, (down, up) in made.items()
        for k, v in plain(f"transformer.{name}", (down, up * RANK / ALPHA)).items()
    }
    special = next(iter(made))
    state[f"transformer.{special}.lora_B.weight"] *= ALPHA / 9
    said = {
        "transformer.r": RANK,
        "transformer.lora_alpha": ALPHA,
        "transformer.alpha_pattern": {special: 9.0},
        "transformer.rank_pattern": {},
        "transformer.use_rslora": False,
    }
    return state, {"lora_adapter_metadata": json.dumps(said)}


def rslora(source: Path, made: Made) -> Written:
    state = {
        k: v
        for name, (down, up) in made.items()
        for k, v in plain(f"transformer.{name}", (down, up * RANK**0.5 / ALPHA)).items()
    }
    said = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA, "transformer.use_rslora": True}
    return state, {"lora_adapter_metadata": json.dumps(said)}


def old_suffixes(source: Path, made: Made) -> Written:
    return {k: v for name, pair in made.items() for k, v in scaled(f"transformer.{name}", pair).items()}, {}


def older_suffixes(source: Path, made: Made) -> Written:
    state = {}
    for name, (down, up) in made.items():
        state |= {f"transformer.{name}_lora.down.weight": down, f"transformer.{name}_lora.up.weight": up}
    return state, {}


def diffsynth(source: Path, made: Made) -> Written:
    return {k: v for name, pair in made.items() for k, v in plain(name, pair, ".default").items()}, {}


def kohya(source: Path, made: Made) -> Written:
    each = fused(source, made).items()
    return {
        k: v for name, pair in each for k, v in scaled("lora_unet_" + name.replace(".", "_"), pair).items()
    }, {"ss_network_alpha": "1"}


def kohya_without_alpha(source: Path, made: Made) -> Written:
    state, metadata = kohya(source, made)
    for name in [name for name in state if name.endswith(".alpha")]:
        up = name.replace(".alpha", ".lora_up.weight")
        state[up] = state[up] * (state.pop(name) / state[up].shape[1])
    return state, metadata


def comfy(source: Path, made: Made) -> Written:
    each = fused(source, made).items()
    return {k: v for name, pair in each for k, v in plain(f"diffusion_model.{name}", pair).items()}, {}


def peft_on_bfl(source: Path, made: Made) -> Written:
    each = fused(source, made).items()
    return {k: v for name, pair in each for k, v in plain(f"base_model.model.{name}", pair).items()}, {}


def onetrainer(source: Path, made: Made) -> Written:
    return {
        k: v
        for name, pair in made.items()
        for k, v in scaled("lora_transformer_" + name.replace(".", "_"), pair).items()
    }, {}


def underscore(source: Path, made: Made) -> Written:
    return {
        k: v
        for name, pair in made.items()
        for k, v in scaled("lora_unet_" + name.replace(".", "_") + "_", pair).items()
    }, {}


def loha(source: Path, made: Made) -> Written:
    """The second factor is all ones."""
    state = {}
    for name, (down, up) in made.items():
        key = "lycoris_" + name.replace(".", "_")
        state |= {
            f"{key}.hada_w1_a": up,
            f"{key}.hada_w1_b": down * RANK / ALPHA,
            f"{key}.hada_w2_a": torch.ones(up.shape[0], 1),
            f"{key}.hada_w2_b": torch.ones(1, down.shape[1]),
            f"{key}.alpha": torch.tensor([ALPHA]),
        }
    return state, {}


def lokr(source: Path, made: Made) -> Written:
    """The first factor is 1 and the second the whole update; an alpha without a meaning, as ai-toolkit has it."""
    state = {}
    for name, (down, up) in made.items():
        key = "lycoris_" + name.replace(".", "_")
        state |= {f"{key}.lokr_w1": torch.ones(1, 1), f"{key}.lokr_w2": up @ down}
        state[f"{key}.alpha"] = torch.tensor(1e10)
    return state, {}


def lokr_decomposed(source: Path, made: Made) -> Written:
    state = {}
    for name, (down, up) in fused(source, made).items():
        key, rank = f"diffusion_model.{name}", down.shape[0]
        state |= {f"{key}.lokr_w1": torch.full((1, 1), rank / ALPHA)}
        state |= {f"{key}.lokr_w2_a": up, f"{key}.lokr_w2_b": down, f"{key}.alpha": torch.tensor(ALPHA)}
    return state, {}


def diff(source: Path, made: Made) -> Written:
    return {f"diffusion_model.{name}.diff": up @ down for name, (down, up) in fused(source, made).items()}, {}


FORMS: dict[str, Callable[[Path, Made], Written]] = {
    each.__name__: each
    for each in (
        peft,
        peft_with_metadata,
        rslora,
        old_suffixes,
        older_suffixes,
        diffsynth,
        kohya,
        kohya_without_alpha,
        comfy,
        peft_on_bfl,
        onetrainer,
        underscore,
        loha,
        lokr,
        lokr_decomposed,
        diff,
    )
}
"""Those that can write any update of weights."""

BY_PART = Concat
"""What makes a fused parameter of diffusers' tensors."""


def save(path: Path, written: Written) -> Path:
    state, metadata = written
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path, metadata or None)
    return path
