"""diffusers' and transformers' models as the oracle of every stage.

Nothing here uses this project's modules: BFL's names are converted by diffusers' own code, what passes
between the stages is what diffusers' transformer hands from module to module in a whole step, and the taps
are transformers' hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from flux_trt.exporter.checkpoints.checkpoint import Part
from flux_trt.exporter.families import vae_statistics_oracle
from flux_trt.exporter.families.encoder import FRONT, tower_of
from flux_trt.exporter.families.fit import matching
from flux_trt.exporter.families.flux3.names import IGNORED
from flux_trt.exporter.families.flux3.params import flux3_params
from flux_trt.exporter.families.flux3.variants import QWEN3_VL
from flux_trt.exporter.families.oracle import BATCH, GRID, TEXT, Case, Values, opened, state
from flux_trt.runtime.bundle.manifest import StageName
from flux_trt.runtime.errors import BuildError

TIMES = (1.0, 0.6, 0.2)
STEP = 1
"""Of `TIMES`, that of the denoiser's case."""
REFERENCES = ((2, 3), (4, 2))
"""Rows and columns of two reference pictures."""


def transformer(part: Part) -> tuple[Any, str]:
    """diffusers' Flux3Transformer2DModel with the checkpoint's weights in float32, and who read them.

    Raises:
        BuildError: a diffusers that does not know it.
    """
    try:
        from diffusers import Flux3Transformer2DModel
    except ImportError:
        raise BuildError("diffusers has no FLUX.3 to compare with; install diffusers 0.42 or newer") from None
    return opened(Flux3Transformer2DModel, part, "diffusers", partial(_filled, Flux3Transformer2DModel, part))


def _filled(kind: Any, part: Part) -> nn.Module:
    from diffusers.loaders.single_file_utils import convert_flux3_transformer_checkpoint_to_diffusers

    p = flux3_params(part)
    model: nn.Module = kind(
        in_channels=p.in_channels,
        cond_in_channels=p.in_channels,
        num_layers=p.depth,
        num_single_layers=p.depth_single_blocks,
        attention_head_dim=p.head_dim,
        num_attention_heads=p.num_heads,
        joint_attention_dim=p.context_in_dim,
        mlp_ratio=p.mlp_ratio,
        axes_dims_rope=p.axes_dim,
        rope_theta=int(p.theta),
        flow_map=p.flow_map,
    )
    found = state(part)
    if part.naming == "bfl":
        found = convert_flux3_transformer_checkpoint_to_diffusers(found)
    unused = matching(found, IGNORED)
    model.load_state_dict({name: tensor.float() for name, tensor in found.items() if name not in unused})
    return model


def text_case(part: Part) -> Case:
    """transformers' hidden states of random ids, the second prompt half as long; padding stands at 1."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    p = tower_of(part, QWEN3_VL)

    def fill() -> nn.Module:
        model: Any = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**(dict(part.config) or _config(part))))
        named = {FRONT.sub("", name): tensor for name, tensor in state(part).items()}
        inside = model.model.language_model
        missing, _ = inside.load_state_dict({n: t.float() for n, t in named.items()}, strict=False)
        if wanting := [name for name in missing if name != "norm.weight"]:
            raise RuntimeError(f"{wanting[0]} is not filled")
        return cast(nn.Module, model)

    model, oracle = opened(Qwen3VLForConditionalGeneration, part, "transformers", fill)
    ids = torch.randint(p.vocab_size // 2, (BATCH, TEXT))
    mask = torch.ones(BATCH, TEXT, dtype=torch.int64)
    mask[1, TEXT // 2 :] = 0
    places = torch.arange(TEXT).expand(BATCH, -1).masked_fill(mask == 0, 1)
    found = model(
        input_ids=ids, attention_mask=mask, position_ids=places, output_hidden_states=True, use_cache=False
    )
    text = torch.cat([found.hidden_states[tap] for tap in p.taps], dim=-1)
    return Case({"ids": ids, "mask": mask}, {"text": text}, oracle)


def _config(part: Part) -> dict[str, Any]:
    """transformers' config of a file that has none; what is seen is left small."""
    p = tower_of(part, QWEN3_VL)
    bare = [FRONT.sub("", name) for name in part.tensors]
    third = p.head_dim // 6
    text = {
        "vocab_size": p.vocab_size,
        "hidden_size": p.hidden_size,
        "intermediate_size": p.intermediate_size,
        "num_hidden_layers": 1 + max(int(name.split(".")[1]) for name in bare if name.startswith("layers.")),
        "num_attention_heads": p.heads,
        "num_key_value_heads": p.kv_heads,
        "head_dim": p.head_dim,
        "rms_norm_eps": p.eps,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": p.theta,
            "mrope_section": [p.head_dim // 2 - 2 * third, third, third],
            "mrope_interleaved": True,
        },
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    seen = {"out_hidden_size": p.hidden_size, "deepstack_visual_indexes": [0]}
    return {"text_config": text, "vision_config": {**vision, **seen}}


@dataclass(frozen=True)
class _Run:
    """Steps of diffusers' transformer on random inputs, and what its modules gave in each."""

    model: Any
    inputs: Values
    """Those of all stages."""
    velocities: list[Tensor]
    given: list[dict[str, Tensor]]
    """Step -> module -> its output."""
    oracle: str

    def rows(self, name: str, step: int) -> Tensor:
        """[3, D]: of a modulation, which is the same for all tokens."""
        found = self.given[step][name][0, 0]
        return found.view(3, -1)


LAST = "norm_out.linear"


def _run(part: Part) -> _Run:
    (model, oracle), p = transformer(part), flux3_params(part)
    tokens, many = GRID[0] * GRID[1], sum(rows * columns for rows, columns in REFERENCES)
    text_ids = nn.functional.pad(torch.arange(TEXT)[:, None], (3, 0))
    image_ids = _ids(GRID, 0)
    reference_ids = torch.cat([_ids(grid, -1 - k) for k, grid in enumerate(REFERENCES)])
    latents = torch.randn(BATCH, tokens, p.in_channels)
    references = torch.randn(BATCH, many, p.in_channels)
    text = torch.randn(BATCH, TEXT, p.context_in_dim)
    timesteps = torch.tensor(TIMES)
    targets = torch.cat([timesteps[1:], torch.zeros(1)])
    tables = {
        name: [table[:, ::2].float() for table in model.pos_embed(ids)]
        for name, ids in (
            ("", torch.cat([text_ids, image_ids, reference_ids])),
            ("text_", text_ids),
            ("reference_", reference_ids),
        )
    }
    seen: dict[str, Tensor] = {}
    watched = [
        *(f"{kind}_stream_modulations.{mode}" for kind in ("early", "single") for mode in _MODES),
        *(f"{stack}.{p.depth - 1}" for stack in ("txt_mode_blocks", "mode_blocks.image_cond")),
        LAST,
    ]
    for name in watched:
        model.get_submodule(name).register_forward_hook(
            lambda module, given, output, name=name: seen.__setitem__(name, output)
        )
    velocities, given = [], []
    for time, target in zip(timesteps, targets, strict=True):
        jump = {"target_timestep": target.expand(BATCH)} if p.flow_map else {}
        velocities.append(
            model(
                hidden_states=latents,
                encoder_hidden_states=text,
                timestep=time.expand(BATCH),
                img_ids=image_ids,
                txt_ids=text_ids,
                image_cond_hidden_states=references,
                image_cond_ids=reference_ids,
                **jump,
            ).sample
        )
        given.append(dict(seen))
    inputs = {
        "timesteps": timesteps,
        "targets": targets,
        "text": text,
        "latents": latents,
        "dt": -torch.rand(BATCH, tokens, 1),
        "reference_latents": references,
        **{f"{name}cos": table[0] for name, table in tables.items()},
        **{f"{name}sin": table[1] for name, table in tables.items()},
    }
    return _Run(model, inputs, velocities, given, oracle)


_MODES = ("image", "image_cond", "txt")


def _ids(grid: tuple[int, int], l: int) -> Tensor:  # noqa: E741
    rows, columns = torch.arange(grid[0]) * 0.5, torch.arange(grid[1]) * 0.5
    return torch.cartesian_prod(torch.zeros(1), rows, columns, torch.tensor([float(l)]))


def _modulation(run: _Run) -> Tensor:
    """[S, 14, D]."""
    steps = []
    for step in range(len(TIMES)):
        scale, shift = run.given[step][LAST][0, 0].chunk(2)
        steps.append(
            torch.cat(
                [
                    run.rows("early_stream_modulations.image", step),
                    run.rows("single_stream_modulations.image", step),
                    torch.stack([shift, scale]),
                    run.rows("single_stream_modulations.txt", step),
                    run.rows("single_stream_modulations.image_cond", step),
                ]
            )
        )
    return torch.stack(steps)


def _early(run: _Run, mode: str, flow_map: bool) -> Tensor:
    """[S, 3, D], or [3, D] where it is the same in every step."""
    steps = torch.stack([run.rows(f"early_stream_modulations.{mode}", step) for step in range(len(TIMES))])
    return steps if flow_map else steps[0]


def time_case(part: Part) -> Case:
    """Modulation at three noise levels."""
    run, jumps = _run(part), flux3_params(part).flow_map
    expected = {
        "modulation": _modulation(run),
        "context_modulation": _early(run, "txt", jumps),
        "reference_modulation": _early(run, "image_cond", jumps),
    }
    return Case(_of(run, "timesteps", *(["targets"] if jumps else [])), expected, run.oracle)


def context_case(part: Part) -> Case:
    """Text through its own blocks."""
    run, p = _run(part), flux3_params(part)
    name = f"txt_mode_blocks.{p.depth - 1}"
    steps = torch.stack([given[name] for given in run.given])
    inputs = _of(run, "text", "text_cos", "text_sin")
    inputs["context_modulation"] = _early(run, "txt", p.flow_map)
    return Case(inputs, {"context": steps if p.flow_map else steps[0]}, run.oracle)


def references_case(part: Part) -> Case:
    """Two reference pictures through their own blocks, in the second step."""
    run, p = _run(part), flux3_params(part)
    inputs = _of(run, "reference_latents", "reference_cos", "reference_sin")
    inputs["reference_modulation"] = run.rows("early_stream_modulations.image_cond", STEP)
    return Case(inputs, {"references": _references(run, p.depth)}, run.oracle)


def _references(run: _Run, depth: int) -> Tensor:
    return run.given[STEP][f"mode_blocks.image_cond.{depth - 1}"]


def denoiser_case(part: Part) -> Case:
    """The second step of random latents with two reference pictures."""
    run, p = _run(part), flux3_params(part)
    inputs = _of(run, "latents", "dt", "cos", "sin")
    inputs["modulation"] = _modulation(run)[STEP]
    inputs["context"] = run.given[STEP][f"txt_mode_blocks.{p.depth - 1}"]
    inputs["references"] = _references(run, p.depth)
    velocity = run.velocities[STEP]
    moved = inputs["latents"] + inputs["dt"] * velocity
    return Case(inputs, {"next_latents": moved, "velocity": velocity}, run.oracle)


def _of(run: _Run, *names: str) -> Values:
    return {name: run.inputs[name] for name in names}


CASES: Mapping[StageName, Callable[[Part], Case]] = {
    "text": text_case,
    "time": time_case,
    "context": context_case,
    "references": references_case,
    "denoiser": denoiser_case,
    "vae_encoder": vae_statistics_oracle.encoder_case,
    "vae_decoder": vae_statistics_oracle.decoder_case,
}
