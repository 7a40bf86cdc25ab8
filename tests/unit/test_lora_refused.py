"""What is wrong with a LoRA is one line, before any work; nothing of one is passed over in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loras
import pytest
import torch
from checkpoints import write_bfl
from click.testing import CliRunner
from loras import State
from safetensors.torch import save_file

from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.cli import main
from flux_trt.exporter.families.recognise import recognise
from flux_trt.runtime.errors import CheckpointError

Get = Callable[[str], Path]
QKV = "diffusion_model.double_blocks.0.img_attn.qkv"


@pytest.fixture(scope="module")
def source(checkpoint: Get) -> Path:
    return checkpoint("dev-like")


def merged(source: Path, wanted: str, **beside: Any) -> Any:
    return recognise(open_checkpoint(str(source), lora=[wanted], **beside)).checkpoint


def pair(name: str, rank: int = 4, out: int = 288, into: int = 96) -> State:
    torch.manual_seed(0)
    return {f"{name}.lora_A.weight": torch.randn(rank, into), f"{name}.lora_B.weight": torch.randn(out, rank)}


def without(state: State, ending: str) -> State:
    return {name: each for name, each in state.items() if not name.endswith(ending)}


NAN = pair(QKV) | {f"{QKV}.lora_B.weight": torch.full((288, 4), float("nan"))}
CASES: dict[str, tuple[State, str]] = {
    "rows": (
        pair(QKV, out=289),
        r"img_attn.qkv makes \[289, 96\] and changes \[288, 96\]; it is for a model of",
    ),
    "columns": (pair(QKV, into=95), r"img_attn.qkv makes \[288, 95\] and changes \[288, 96\]"),
    "wider, not img_in": (pair(QKV, into=192), r"makes \[288, 192\] and changes"),
    "rank": (pair(QKV, rank=999), r"has a rank of 999, more than the sides of \[288, 96\]"),
    "no rank": (pair(QKV, rank=0), "has a rank of 0"),
    "not a number": (NAN, r"qkv \(up\) has values that are not finite"),
    "ranks differ": (
        pair(QKV) | {f"{QKV}.lora_A.weight": torch.randn(5, 96)},
        "has tensors that do not fit together",
    ),
    "half of a pair": (without(pair(QKV), "lora_B.weight"), "qkv has down, which is no whole update"),
    "alpha alone": ({f"{QKV}.alpha": torch.tensor(1.0)}, "has an alpha and nothing else"),
    "alpha of many": (pair(QKV) | {f"{QKV}.alpha": torch.ones(2)}, "alpha is no single number"),
    "alpha inf": (pair(QKV) | {f"{QKV}.alpha": torch.tensor(float("inf"))}, "alpha is inf"),
    "two spellings": (
        pair(QKV) | {f"{QKV}.lora_down.weight": torch.randn(4, 96)},
        "stands there twice, under another spelling",
    ),
    "float8": (
        {name: each.to(torch.float8_e4m3fn) for name, each in pair(QKV).items()},
        "is F8_E4M3: a quantised LoRA is not read",
    ),
    "int8": ({name: each.to(torch.int8) for name, each in pair(QKV).items()}, "is I8: a quantised LoRA"),
    "magnitudes": (
        pair(QKV) | {f"{QKV}.dora_scale": torch.ones(7, 1)},
        r"has magnitudes \[7, 1\] and changes",
    ),
    "OFT": (
        {f"{QKV}.oft_blocks": torch.ones(2, 2, 2)},
        "is OFT .*, which is not read; merge it into the model",
    ),
    "GLoRA": ({f"{QKV}.a1.weight": torch.ones(2, 2)}, "is GLoRA"),
    "IA3": ({f"{QKV}.on_input": torch.ones(1), f"{QKV}.weight": torch.ones(1)}, "is IA3"),
    "conv": (pair(QKV) | {f"{QKV}.lora_mid.weight": torch.ones(4, 4)}, "is a LoRA of convolutions"),
    "no LoRA": ({"x": torch.ones(1)}, "is no LoRA for FLUX.1 that is known here"),
    "a model": ({"img_in.weight": torch.ones(96, 64)}, "is no LoRA for FLUX.1"),
    "no bias there": (
        {"text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.diff_b": torch.ones(80)},
        "has no bias in this model",
    ),
    "FLUX.2": (pair("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"), "is a LoRA for FLUX.2"),
    "FLUX.2, its blocks too": (
        pair("diffusion_model.double_stream_modulation_img.lin") | pair(QKV),
        "is a LoRA for FLUX.2",
    ),
    "SDXL": (
        pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k"),
        "is a LoRA for Stable Diffusion or SDXL",
    ),
    "SD3": (pair("lora_unet_joint_blocks_0_context_block_attn_qkv"), "is a LoRA for Stable Diffusion 3"),
    "Wan": (pair("diffusion_model.blocks.0.self_attn.q"), "is a LoRA for Wan"),
    "Chroma": (pair("diffusion_model.distilled_guidance_layer.in_proj"), "is a LoRA for Chroma"),
    "Hunyuan": (pair("lora_unet_double_blocks_0_img_mod_linear"), "is a LoRA for HunyuanVideo"),
    "LTX": (pair("diffusion_model.transformer_blocks.0.attn1.to_q"), "is a LoRA for LTX-Video"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_says_what_is_wrong(case: str, source: Path, tmp_path: Path) -> None:
    state, said = CASES[case]
    path = loras.save(tmp_path / "bad.safetensors", (state, {}))
    with pytest.raises(CheckpointError, match=said) as fault:
        merged(source, str(path))
    assert "\n" not in str(fault.value) and str(path) in str(fault.value)
    with pytest.raises(CheckpointError, match=said):
        merged(source, f"{path}:0.5", lora_partial=True)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"PK\x03\x04 a pickle", "is a pickle"),
        (b"\x80\x02 a pickle", "is a pickle"),
        (b"GGUF" + bytes(60), "is a GGUF file; LoRAs are read from safetensors"),
        (b"<html>", "is a page of HTML"),
        (b"\xff" * 64, "is not a whole safetensors file"),
    ],
)
def test_other_files(start: bytes, said: str, source: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(start)
    with pytest.raises(CheckpointError, match=said):
        merged(source, str(path))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("nowhere.safetensors", "no LoRA at nowhere.safetensors"),
        ("nowhere.safetensors:0.5", "no LoRA at nowhere.safetensors"),
        ("nowhere.safetensors:much", "no LoRA at nowhere.safetensors:much"),
        ("nowhere.safetensors:nan", "the strength of nowhere.safetensors is nan"),
        ("owner/name", "no LoRA at owner/name"),
    ],
)
def test_no_file_and_no_number(wanted: str, said: str, source: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        merged(source, wanted)


def test_a_word_is_no_strength(source: Path, tmp_path: Path) -> None:
    path = loras.save(tmp_path / "a.safetensors", (pair(QKV), {}))
    with pytest.raises(CheckpointError, match=r"'much' is no strength of .*a.safetensors; give a number"):
        merged(source, f"{path}:much")
    odd = path.rename(tmp_path / "b:0.5")
    assert merged(source, str(odd)).loras[0].strength == 1.0
    assert merged(source, f"{odd}:2").loras[0].strength == 2.0


def test_what_finds_no_place_is_listed_and_refused(source: Path, tmp_path: Path) -> None:
    state = pair(QKV) | pair("diffusion_model.double_blocks.7.img_attn.qkv") | {"stray": torch.ones(1)}
    path = loras.save(tmp_path / "more.safetensors", (state, {}))
    said = (
        r"3 of 5 keys find no place in FLUX.1: diffusion_model.double_blocks.7.img_attn.qkv.lora_A.weight, .*"
        "--lora-partial leaves them out"
    )
    with pytest.raises(CheckpointError, match=said):
        merged(source, str(path))
    found = merged(source, str(path), lora_partial=True)
    assert found.loras[0].targets == {"transformer": 1}
    assert any(
        "3 keys find no place and are left out: diffusion_model.double_blocks.7" in n for n in found.notes
    )


def test_leftovers_of_zeros_and_of_no_use_are_told_of(source: Path, tmp_path: Path) -> None:
    state = pair(QKV) | pair("lora_te1_text_projection") | {"lora_te3_x.lora_up.weight": torch.zeros(1)}
    path = loras.save(tmp_path / "more.safetensors", (state, {}))
    notes = merged(source, str(path)).notes
    assert any("lora_te1_text_projection: no picture depends on it" in note for note in notes)
    assert any("lora_te3_x: it is all zeros" in note for note in notes)


def test_an_alpha_of_zero_is_told_of(source: Path, tmp_path: Path) -> None:
    path = loras.save(tmp_path / "zero.safetensors", (pair(QKV) | {f"{QKV}.alpha": torch.tensor(0.0)}, {}))
    assert any("its alpha is 0, so it changes nothing" in note for note in merged(source, str(path)).notes)


def test_a_part_that_is_not_there_is_told_of(source: Path, tmp_path: Path) -> None:
    state = pair(QKV) | pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", out=96, into=48)
    path = loras.save(tmp_path / "text.safetensors", (state, {}))
    notes = merged(write_bfl(source, tmp_path / "flux.safetensors"), str(path)).notes
    assert any("1 module of clip is not merged, for the checkpoint has no clip" in note for note in notes)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("no json", "lora_adapter_metadata is no JSON object"),
        (json.dumps({"transformer.lora_alpha": "many"}), "its lora_alpha is 'many'"),
        (
            json.dumps({"transformer.lora_alpha": 1, "transformer.alpha_pattern": {"(a+)+$": 2}}),
            "is no module's",
        ),
        (json.dumps({"transformer.lora_alpha": 1, "transformer.alpha_pattern": 3}), "is no JSON object"),
    ],
)
def test_settings_that_are_none(metadata: str, said: str, source: Path, tmp_path: Path) -> None:
    state = pair("transformer.transformer_blocks.0.attn.to_q", out=96)
    path = loras.save(tmp_path / "said.safetensors", (state, {"lora_adapter_metadata": metadata}))
    with pytest.raises(CheckpointError, match=said):
        merged(source, str(path))


def test_settings_beside_an_adapter(source: Path, tmp_path: Path) -> None:
    state = pair("base_model.model.transformer_blocks.0.attn.to_q", out=96)
    path = tmp_path / "adapter_model.safetensors"
    save_file(state, path)
    side = tmp_path / "adapter_config.json"
    side.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 6}))
    assert merged(source, str(tmp_path)).loras[0].terms[0].scale == 1.5
    side.write_text(json.dumps({"peft_type": "LOKR", "alpha": 6}))
    with pytest.raises(CheckpointError, match="is PEFT's LOKR, which is not read"):
        merged(source, str(path))


def test_a_strength_beyond_all_numbers(source: Path, tmp_path: Path) -> None:
    path = loras.save(tmp_path / "big.safetensors", (pair(QKV), {}))
    part = merged(source, f"{path}:1e39").parts["transformer"]
    with pytest.raises(CheckpointError, match=r"at a strength of 1e\+39 double_blocks.0.img_attn.qkv.weight"):
        part.tensors["double_blocks.0.img_attn.qkv.weight"].read()


def test_a_dry_run_tells_every_fault(source: Path, tmp_path: Path) -> None:
    good = loras.save(tmp_path / "good.safetensors", (pair(QKV), {}))
    bad = loras.save(tmp_path / "bad.safetensors", (pair(QKV, out=289), {}))
    args = ["build", str(source), "--out", str(tmp_path / "b"), "--dry-run", "--lora", f"{good}:0.5"]
    done = CliRunner().invoke(main, [*args, "--lora", str(bad), "--lora", "nowhere"])
    assert done.exit_code == 1
    assert "Error: no LoRA at nowhere" in done.output and "makes [289, 96]" in done.output
    assert not (tmp_path / "b").exists()
    done = CliRunner().invoke(main, args)
    assert done.exit_code == 0
    assert "good.safetensors at 0.5: ComfyUI form, LoRA of rank 4, 1 module of" in " ".join(
        done.output.split()
    )


def test_inspect_tells_what_a_lora_is(source: Path, tmp_path: Path) -> None:
    path = loras.save(tmp_path / "k.safetensors", loras.kohya(source, loras.update(source)))
    done = CliRunner().invoke(main, ["inspect", str(path)])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "a LoRA for FLUX.1, kohya form" in said and "rank 4, 12, 16" in said and "alpha / rank" in said
    found = json.loads(CliRunner().invoke(main, ["inspect", str(path), "--json"]).output)
    assert found["kinds"]["LoRA"] == sum(found["targets"].values()) > 20
    path = loras.save(tmp_path / "other.safetensors", (CASES["Wan"][0], {}))
    done = CliRunner().invoke(main, ["inspect", str(path)])
    assert done.exit_code == 1 and "is a LoRA for Wan" in done.output


def test_a_lora_given_as_a_checkpoint_is_told_where_it_goes(tmp_path: Path) -> None:
    path = loras.save(tmp_path / "a.safetensors", (pair(QKV), {}))
    with pytest.raises(
        CheckpointError, match="is a LoRA, not a model; give the model .* and this with --lora"
    ):
        open_checkpoint(str(path))
