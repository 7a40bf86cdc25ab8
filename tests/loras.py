"""LoRA files as the tools write them, all of one random update, and what they make of the weights.

An update has for every module of diffusers' transformer A [r, in] and B [out, r]; the forms are that update
under other names, fused, split, with its scale elsewhere. Which keys a form has: the sources named in
`runtime/lora` and `exporter/checkpoints/lora`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.checkpoints.recipe import SwapHalves
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
    """BFL's parameters of diffusers' tensors, those in `changed` instead of the checkpoint's, float64."""
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
    """The first factor is 1, the second the whole update; an alpha without a meaning, as ai-toolkit has."""
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


def xlabs(source: Path, seed: int = 0) -> tuple[State, Made]:
    """Attention alone, one A for q, k and v; and the same update by diffusers' modules."""
    state, made = {}, update(source, seed)
    modules: Made = {}

    def attention(key: str, parts: list[str], proj: str, number: str) -> None:
        down, ups = made[parts[0]][0], [made[part][1] for part in parts]
        modules.update({part: (down, up) for part, up in zip(parts, ups, strict=True)})
        modules[proj] = made[proj]
        for name, (a, b) in (("qkv", (down, torch.cat(ups))), ("proj", made[proj])):
            state[f"{key}.processor.{name}_lora{number}.down.weight"] = a
            state[f"{key}.processor.{name}_lora{number}.up.weight"] = b

    for i in range(sum(".norm1_context.linear" in name for name in made)):
        block, key = f"transformer_blocks.{i}", f"double_blocks.{i}"
        attn = f"{block}.attn"
        attention(key, [f"{attn}.to_{each}" for each in "qkv"], f"{attn}.to_out.0", "1")
        attention(key, [f"{attn}.add_{each}_proj" for each in "qkv"], f"{attn}.to_add_out", "2")
    for i in range(sum(name.endswith(".proj_mlp") for name in made)):
        block = f"single_transformer_blocks.{i}"
        attention(
            f"single_blocks.{i}", [f"{block}.attn.to_{each}" for each in "qkv"], f"{block}.proj_out", ""
        )
    return state, modules


def control(source: Path, spelled: str = "bfl") -> tuple[State, State]:
    """A control LoRA, as BFL wrote it or as newer or older ComfyUI does, and what it makes, float64."""
    draw, base = torch.Generator().manual_seed(7), ours(source, {})
    state: State = {}
    for name in [name for name in base if name.endswith(".weight")]:
        module = name.removesuffix(".weight")
        out, into = base[name].shape[0], base[name].shape[1] * (2 if module == "img_in" else 1)
        down, up = (0.05 * torch.randn(shape, generator=draw) for shape in ((RANK, into), (out, RANK)))
        bias = 0.05 * torch.randn(out, generator=draw)
        state |= {
            f"{module}.lora_A.weight": down,
            f"{module}.lora_B.weight": up,
            f"{module}.lora_B.bias": bias,
        }
        wide = torch.nn.functional.pad(base[name], (0, into - base[name].shape[1]))
        base[name] = wide + up.double() @ down.double()
        base[f"{module}.bias"] = base[f"{module}.bias"] + bias.double()
    for name in [name for name in base if name.endswith(".scale")]:
        state[name] = 1 + 0.1 * torch.randn(base[name].shape, generator=draw)
        base[name] = state[name].double()
    if spelled != "bfl":
        norm = "_norm.set_weight" if spelled == "comfy" else "_norm.scale.set_weight"
        to = {".lora_B.bias": ".diff_b", "_norm.scale": norm}
        state = {f"diffusion_model.{_spelled(name, to)}": tensor for name, tensor in state.items()}
        state["diffusion_model.img_in.reshape_weight"] = torch.tensor(base["img_in.weight"].shape)
    return state, base


def control_by_diffusers(source: Path) -> State:
    """A control LoRA under diffusers' names, without biases, as its pipeline reads it of any model."""
    draw, state, found = torch.Generator().manual_seed(7), theirs(source), {}
    for name, (down, up) in update(source, 3).items():
        if name == "x_embedder":
            down = 0.05 * torch.randn((RANK, 2 * down.shape[1]), generator=draw)
        found |= plain(f"transformer.{name}", (down, up))
    for name in [
        name for name in state if ".norm_" in name and state[name].ndim == 1 and "linear" not in name
    ]:
        found[f"transformer.{name}"] = 1 + 0.1 * torch.randn(state[name].shape, generator=draw)
    return found


def _spelled(name: str, to: Mapping[str, str]) -> str:
    for old, new in to.items():
        name = name.replace(old, new)
    return name


def encoder(source: Path, folder: str, ends: tuple[str, ...]) -> tuple[Made, State]:
    """An update of a text encoder's linear layers, by their names, and what it makes of them, float64."""
    (path,) = (source / folder).glob("*.safetensors")
    base, draw = load_file(path), torch.Generator().manual_seed(9)
    made, changed = {}, {}
    for name in sorted(name for name in base if name.removesuffix(".weight").endswith(ends)):
        module = name.removesuffix(".weight").removeprefix("text_model.")
        shapes = ((RANK, base[name].shape[1]), (base[name].shape[0], RANK))
        down, up = made[module] = tuple(0.1 * torch.randn(shape, generator=draw) for shape in shapes)
        changed[f"{module}.weight"] = base[name].double() + up.double() @ down.double()
    return made, changed


CLIP = (*tuple(f"self_attn.{each}_proj" for each in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
T5 = (*tuple(f"SelfAttention.{each}" for each in "qkvo"), "wi_0", "wi_1", ".wo")


def save(path: Path, written: Written) -> Path:
    state, metadata = written
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path, metadata or None)
    return path
