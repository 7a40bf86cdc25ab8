"""Every form of a LoRA file makes the same weights: those computed in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import loras
import pytest
import torch
from checkpoints import write_bfl
from loras import FORMS, State
from quantised_tensors import E4M3, quantised
from safetensors.torch import load_file, save_file

from flux_trt.exporter.checkpoints.checkpoint import Checkpoint
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.families.plan import make_stages
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.quantise.ranges import identity

Get = Callable[[str], Path]
NEAR = 1e-6
"""Of weights below 1: some roundings of float32."""


def merged(source: Path, *wanted: str, **beside: object) -> Checkpoint:
    return recognise(open_checkpoint(str(source), lora=wanted, **beside)).checkpoint


def values(found: Checkpoint, part: str = "transformer") -> State:
    return {name: info.read() for name, info in found.parts[part].tensors.items()}


def off(found: State, wanted: State) -> float:
    return max(float((found[name].double() - wanted[name]).abs().max()) for name in wanted)


@pytest.fixture(scope="module")
def source(checkpoint: Get) -> Path:
    return checkpoint("dev-like")


@pytest.fixture(scope="module")
def made(source: Path) -> loras.Made:
    return loras.update(source)


def test_the_update_shows(source: Path, made: loras.Made) -> None:
    assert off(loras.ours(source, {}), loras.exact(source, made)) > 1000 * NEAR


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strength", [1, 0.5, -1])
def test_every_form_is_the_same_update(
    form: str, strength: float, source: Path, made: loras.Made, tmp_path: Path
) -> None:
    path = loras.save(tmp_path / f"{form}.safetensors", FORMS[form](source, made))
    found = merged(source, f"{path}:{strength}")
    assert off(values(found), loras.exact(source, made, strength)) < NEAR
    assert set(values(found)) == set(loras.ours(source, {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_anything(
    dtype: torch.dtype, source: Path, made: loras.Made, tmp_path: Path
) -> None:
    half = {name: tuple(each.to(dtype).float() for each in pair) for name, pair in made.items()}
    state = {name: tensor.to(dtype) for name, tensor in loras.comfy(source, half)[0].items()}
    path = loras.save(tmp_path / "half.safetensors", (state, {}))
    assert off(values(merged(source, str(path))), loras.exact(source, half)) < NEAR


def test_xlabs(source: Path, tmp_path: Path) -> None:
    state, modules = loras.xlabs(source)
    for prefix in ("", "diffusion_model."):
        path = loras.save(
            tmp_path / "x.safetensors", ({f"{prefix}{name}": each for name, each in state.items()}, {})
        )
        found = merged(source, str(path))
        assert off(values(found), loras.exact(source, modules)) < NEAR
        assert found.loras[0].form == "XLabs"


@pytest.mark.parametrize("spelled", ["bfl", "comfy", "older comfy"])
def test_a_control_lora_widens_and_replaces(spelled: str, source: Path, tmp_path: Path) -> None:
    state, wanted = loras.control(source, spelled)
    path = loras.save(tmp_path / "control.safetensors", (state, {}))
    model = recognise(open_checkpoint(str(source), lora=[str(path)]), "depth")
    assert off(values(model.checkpoint), wanted) < NEAR
    assert model.tasks(list(model.parts)) == ["control"]
    assert make_stages(model, "fp32", ["conditioner", "denoiser"])
    stronger = merged(source, f"{path}:2")
    assert any("replace the model's, whatever the strength" in note for note in stronger.notes)


@pytest.mark.parametrize("order", [("control", "plain"), ("plain", "control")])
def test_a_plain_lora_and_a_control_lora(
    order: tuple[str, str], source: Path, made: loras.Made, tmp_path: Path
) -> None:
    state, wanted = loras.control(source)
    loras.save(tmp_path / "control.safetensors", (state, {}))
    loras.save(tmp_path / "plain.safetensors", loras.comfy(source, made))
    for name, (down, up) in loras.fused(source, made).items():
        added = up.double() @ down.double()
        weight = wanted[f"{name}.weight"]
        weight[:, : added.shape[1]] += added
    found = merged(source, *(str(tmp_path / f"{name}.safetensors") for name in order))
    assert off(values(found), wanted) < NEAR


def test_two_loras_add(source: Path, made: loras.Made, tmp_path: Path) -> None:
    other = loras.update(source, 1)
    one = loras.save(tmp_path / "one.safetensors", loras.kohya(source, made))
    two = loras.save(tmp_path / "two.safetensors", loras.peft(source, other))
    plain, first, second = (
        loras.ours(source, {}),
        loras.exact(source, made, 0.7),
        loras.exact(source, other, -0.4),
    )
    wanted = {name: first[name] + second[name] - plain[name] for name in plain}
    assert off(values(merged(source, f"{one}:0.7", f"{two}:-0.4")), wanted) < NEAR


def test_a_partial_lora_leaves_the_rest_as_it_lies(source: Path, made: loras.Made, tmp_path: Path) -> None:
    few = {name: pair for name, pair in made.items() if name.endswith(("0.attn.to_k", "norm_out.linear"))}
    path = loras.save(tmp_path / "few.safetensors", loras.peft(source, few))
    found = merged(source, str(path))
    assert off(values(found), loras.exact(source, few)) < NEAR
    plain = open_checkpoint(str(source)).parts["transformer"].tensors
    assert found.parts["transformer"].tensors["img_in.weight"] == plain["x_embedder.weight"]
    assert found.parts["vae"] is not None and found.parts["clip"].plain is None


def bfl(source: Path, folder: Path) -> Path:
    return write_bfl(source, folder / "flux.safetensors")


def scaled_fp8(source: Path, folder: Path) -> Path:
    path = bfl(source, folder)
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith(".weight")]:
        tensors[name], scale = quantised(tensors[name].float(), E4M3, rows=False)
        tensors[name.replace(".weight", ".scale_weight")] = scale
    tensors["scaled_fp8"] = torch.zeros(2, dtype=E4M3)
    save_file(tensors, path)
    return path


def all_in_one(source: Path, folder: Path) -> Path:
    return write_bfl(source, folder / "all.safetensors", "model.diffusion_model.")


def q8(source: Path, folder: Path) -> Path:
    tensors = load_file(bfl(source, folder))
    writer = gguf.GGUFWriter(folder / "flux.gguf", "flux")
    for name, tensor in tensors.items():
        kind = (
            gguf.GGMLQuantizationType.Q8_0
            if tensor.ndim == 2 and tensor.shape[1] % 32 == 0
            else gguf.GGMLQuantizationType.F32
        )
        writer.add_tensor(name, gguf.quants.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return folder / "flux.gguf"


@pytest.mark.parametrize("layout", [bfl, scaled_fp8, all_in_one, q8])
@pytest.mark.parametrize("form", ["peft", "kohya", "lokr_decomposed"])
def test_every_layout_of_the_model(
    layout: Callable[[Path, Path], Path], form: str, source: Path, made: loras.Made, tmp_path: Path
) -> None:
    """What is added to the decoded weights is what is added to the plain ones."""
    path = loras.save(tmp_path / "lora.safetensors", FORMS[form](source, made))
    file = layout(source, tmp_path)
    plain = {
        name: info.read().double()
        for name, info in open_checkpoint(str(file)).parts["transformer"].tensors.items()
    }
    was, wanted = loras.ours(source, {}), loras.exact(source, made, 0.8)
    found = merged(file, f"{path}:0.8")
    assert off(values(found), {name: plain[name] + wanted[name] - was[name] for name in plain}) < NEAR


TEXTS = {
    "clip": (
        "text_encoder",
        loras.CLIP,
        [
            ("lora_te1_text_model_", "_"),
            ("text_encoder.text_model.", "."),
            ("text_encoder.", "."),
            ("text_encoders.clip_l.transformer.text_model.", "."),
            ("lora_te_text_model_", "_"),
        ],
    ),
    "t5": (
        "text_encoder_2",
        loras.T5,
        [
            ("lora_te3_", "_"),
            ("lora_te2_", "_"),
            ("text_encoders.t5xxl.transformer.", "."),
            ("text_encoder_2.", "."),
        ],
    ),
}


@pytest.mark.parametrize(
    ("part", "prefix", "dot"),
    [(part, prefix, dot) for part, (_, _, forms) in TEXTS.items() for prefix, dot in forms],
)
def test_text_encoders(part: str, prefix: str, dot: str, source: Path, tmp_path: Path) -> None:
    folder, ends, _ = TEXTS[part]
    update, wanted = loras.encoder(source, folder, ends)
    state = {
        key: each
        for name, pair in update.items()
        for key, each in loras.scaled(prefix + name.replace(".", dot), pair).items()
    }
    path = loras.save(tmp_path / "text.safetensors", (state, {}))
    found = merged(source, str(path))
    assert off(values(found, part), wanted) < NEAR
    assert found.loras[0].targets == {part: len(update)}
    assert "transformer" in found.parts and found.parts["transformer"].plain is None


def test_a_file_with_the_same_update_twice_is_used_once(
    source: Path, made: loras.Made, tmp_path: Path
) -> None:
    state = loras.peft(source, made)[0]
    few = {name: pair for name, pair in made.items() if "attn" in name}
    state |= loras.underscore(source, few)[0]
    path = loras.save(tmp_path / "twice.safetensors", (state, {}))
    found = merged(source, str(path))
    assert off(values(found), loras.exact(source, made)) < NEAR
    assert any("stands there under another name, too, and is used once" in note for note in found.notes)


def test_a_folder_is_a_lora(source: Path, made: loras.Made, tmp_path: Path) -> None:
    loras.save(tmp_path / "pytorch_lora_weights.safetensors", loras.peft(source, made))
    assert off(values(merged(source, f"{tmp_path}:0.5")), loras.exact(source, made, 0.5)) < NEAR


def test_a_strength_of_nothing_is_left_out(source: Path, made: loras.Made, tmp_path: Path) -> None:
    path = loras.save(tmp_path / "a.safetensors", loras.peft(source, made))
    found = merged(source, f"{path}:0")
    assert found.parts["transformer"].plain is None and found.notes == (
        "a.safetensors: a strength of 0 leaves it out",
    )


def test_a_calibration_is_of_one_strength(source: Path, made: loras.Made, tmp_path: Path) -> None:
    path = loras.save(tmp_path / "a.safetensors", loras.peft(source, made))

    def identified(*wanted: str, plain: bool = False) -> dict[str, str]:
        return identity(recognise(open_checkpoint(str(source), lora=wanted)), {}, plain=plain)

    none, half, more = identified(), identified(f"{path}:0.5"), identified(f"{path}:0.6")
    assert len({each["transformer"] for each in (none, half, more)}) == 3
    assert none["t5"] == half["t5"] == more["t5"]
    assert identified(f"{path}:0.5") == half and identified(f"{path}:0.5", plain=True) == none
