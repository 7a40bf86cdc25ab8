"""LoRA files as a bundle's branches take them, read without torch: exact, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import loras
import numpy as np
import onnx
import pytest
import torch

from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.errors import CheckpointError, FluxTrtError, RequestError
from flux_trt.runtime.lora.chosen import chosen
from flux_trt.runtime.lora.factors import read, shapes_of

LOW_RANK = [name for name in loras.FORMS if name not in ("loha", "lokr", "lokr_decomposed", "diff")]
SHARED = 3
"""Files that split q, k and v have a rank of their own for each."""


@pytest.fixture(scope="module")
def source(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("dev-like")


@pytest.fixture(scope="module")
def opened(lora_bundle: Path) -> Bundle:
    return Bundle.open(lora_bundle, check=False)


def changes(opened: Bundle, *given: object) -> dict[str, np.ndarray]:
    """Parameter -> what LoRAs add to it, [out, in], float64."""
    adapters = opened.manifest.adapters
    assert adapters is not None
    found, factors = {}, read(opened, chosen(list(given)) or ())
    for branch in adapters.branches:
        arrays = factors.arrays.get(branch.stage, {})
        for index, weight in enumerate(branch.weights):
            if arrays:
                down, up = arrays[branch.down][index], arrays[branch.up][index]
                found[weight] = (down.astype(np.float64) @ up.astype(np.float64)).T
    return found


def expected(source: Path, made: loras.Made, strength: float = 1.0) -> dict[str, np.ndarray]:
    with_it, plain = loras.exact(source, made), loras.ours(source, {})
    return {
        name: strength * (with_it[name] - plain[name]).numpy()
        for name in plain
        if name.endswith(".weight") and with_it[name].ndim == 2
    }


@pytest.mark.parametrize("form", LOW_RANK)
def test_every_form_is_the_same_update(form: str, source: Path, opened: Bundle, tmp_path: Path) -> None:
    made = loras.update(source, 3)
    path = loras.save(tmp_path / "lora.safetensors", loras.FORMS[form](source, made))
    found, exact = changes(opened, path), expected(source, made)
    assert set(found) == set(exact)
    for name, value in exact.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-7, err_msg=name)


def test_the_runtime_and_the_exporter_name_the_same_layers(opened: Bundle, source: Path) -> None:
    """Every matrix of the transformer has a branch, with the sides that it has in the checkpoint."""
    adapters = opened.manifest.adapters
    assert adapters is not None
    plain = loras.ours(source, {})
    found = shapes_of(opened, adapters)
    assert found == {name: tuple(each.shape) for name, each in plain.items() if each.ndim == 2}


def test_xlabs_shares_one_a_and_so_needs_its_rank_once(source: Path, opened: Bundle, tmp_path: Path) -> None:
    state, made = loras.xlabs(source)
    path = loras.save(tmp_path / "lora.safetensors", (state, {}))
    found, exact = changes(opened, path), expected(source, made)
    for name, value in found.items():
        np.testing.assert_allclose(value, exact[name], rtol=0, atol=2e-7)
    arrays = read(opened, chosen(path) or ()).arrays["denoiser"]
    assert arrays["lora_double_blocks_img_attn_qkv_down"].shape[2] == loras.RANK
    apart = loras.save(tmp_path / "apart.safetensors", loras.FORMS["peft"](source, loras.update(source)))
    arrays = read(opened, chosen(apart) or ()).arrays["denoiser"]
    assert arrays["lora_double_blocks_img_attn_qkv_down"].shape[2] == SHARED * loras.RANK
    assert arrays["lora_double_blocks_img_attn_proj_down"].shape[2] == loras.RANK


def test_several_add_up_with_their_strengths(source: Path, opened: Bundle, tmp_path: Path) -> None:
    made = [loras.update(source, seed) for seed in (4, 5)]
    paths = [
        loras.save(tmp_path / f"{form}.safetensors", loras.FORMS[form](source, each))
        for form, each in zip(("kohya", "peft"), made, strict=True)
    ]
    found = changes(opened, f"{paths[0]}:0.5", (paths[1], -0.25))
    one, other = (expected(source, each, by) for each, by in zip(made, (0.5, -0.25), strict=True))
    for name, value in found.items():
        np.testing.assert_allclose(value, one[name] + other[name], rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_type_is_read_as_torch_reads_it(
    dtype: torch.dtype, source: Path, opened: Bundle, tmp_path: Path
) -> None:
    state, _ = loras.FORMS["comfy"](source, loras.update(source, 6))
    rounded = {name: tensor.to(dtype) for name, tensor in state.items()}
    typed = loras.save(tmp_path / "typed.safetensors", (rounded, {}))
    plain = {name: tensor.float() for name, tensor in rounded.items()}
    wide = loras.save(tmp_path / "wide.safetensors", (plain, {}))
    found, exact = changes(opened, typed), changes(opened, wide)
    for name, value in exact.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_stage_that_is_not_changed_has_no_factors(source: Path, opened: Bundle, tmp_path: Path) -> None:
    state, _ = loras.xlabs(source)
    path = loras.save(tmp_path / "lora.safetensors", (state, {}))
    assert set(read(opened, chosen(path) or ()).arrays) == {"denoiser"}


def _other(name: str) -> Callable[[Path], loras.State]:
    return lambda source: loras.FORMS[name](source, loras.update(source))[0]


def _dora(source: Path) -> loras.State:
    state = _other("comfy")(source)
    return state | {"diffusion_model.img_in.dora_scale": torch.ones(1, 64)}


def _idle_dora(source: Path) -> loras.State:
    """Its product is zero, and its magnitudes are not those of the weight."""
    name = "diffusion_model.double_blocks.0.img_attn.proj"
    pair = {f"{name}.lora_down.weight": torch.ones(2, 96), f"{name}.lora_up.weight": torch.zeros(96, 2)}
    return pair | {f"{name}.dora_scale": torch.ones(1, 96)}


def _text(source: Path) -> loras.State:
    name = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    both = {f"{name}.lora_down.weight": torch.ones(2, 8), f"{name}.lora_up.weight": torch.ones(8, 2)}
    return _other("kohya")(source) | both


def _bias(source: Path) -> loras.State:
    return _other("comfy")(source) | {"diffusion_model.img_in.diff_b": torch.ones(96)}


def _norm(source: Path) -> loras.State:
    name = "diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale.set_weight"
    return _other("comfy")(source) | {name: torch.ones(48)}


def _unknown(source: Path) -> loras.State:
    return _other("comfy")(source) | {"diffusion_model.somewhere.lora_down.weight": torch.ones(2, 8)}


def _large(source: Path) -> loras.State:
    down, up = torch.ones(40, 96), torch.ones(96, 40)
    name = "diffusion_model.double_blocks.0.img_attn.proj"
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}


def _wrong(source: Path) -> loras.State:
    name = "diffusion_model.double_blocks.0.img_attn.proj"
    return {f"{name}.lora_down.weight": torch.ones(2, 7), f"{name}.lora_up.weight": torch.ones(96, 2)}


def _nan(source: Path) -> loras.State:
    name = "diffusion_model.double_blocks.0.img_attn.proj"
    return {
        f"{name}.lora_down.weight": torch.full((2, 96), torch.nan),
        f"{name}.lora_up.weight": torch.ones(96, 2),
    }


def _flux2(source: Path) -> loras.State:
    name = "diffusion_model.double_stream_modulation_img.lin"
    return {f"{name}.lora_down.weight": torch.ones(2, 8), f"{name}.lora_up.weight": torch.ones(8, 2)}


REFUSED: dict[str, tuple[Callable[[Path], loras.State], str]] = {
    "LoKr": (_other("lokr"), r"has LoKr \(.*\), which no branch can do; merge it at build"),
    "LoHa": (_other("loha"), r"has LoHa \(.*\), which no branch can do; merge it at build"),
    "a difference": (_other("diff"), r"has diff \(.*\), which no branch can do; merge it at build"),
    "DoRA": (_dora, r"has DoRA \(diffusion_model.img_in\), which no branch can do; merge it at build"),
    "DoRA of zeros": (_idle_dora, r"has DoRA \(.*img_attn.proj\), which no branch can do; merge it at build"),
    "a text encoder": (_text, r"changes clip \(lora_te1_.*\), for which this bundle has no branch; merge"),
    "a bias": (_bias, r"changes a bias of transformer \(.*img_in\), for which .* no branch; merge"),
    "a norm": (_norm, r"changes transformer \(.*query_norm.*\), for which this bundle has no branch; merge"),
    "a control LoRA": (lambda source: loras.control(source)[0], "merge it at build"),
    "an unknown key": (_unknown, "1 of .* keys find no place in FLUX.1: .*; merge it at build"),
    "too large a rank": (
        _large,
        "has a rank of 40, and the bundle takes 8; build with --lora-rank 40, or merge",
    ),
    "wrong shapes": (_wrong, "does not fit FLUX.1"),
    "not finite": (_nan, "has values that are not finite"),
    "FLUX.2's": (_flux2, "is a LoRA for FLUX.2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_branch_can_do_is_one_line(case: str, source: Path, opened: Bundle, tmp_path: Path) -> None:
    make, said = REFUSED[case]
    path = loras.save(tmp_path / "lora.safetensors", (make(source), {}))
    with pytest.raises(FluxTrtError, match=said) as fault:
        read(opened, chosen(path) or ())
    assert isinstance(fault.value, (RequestError, CheckpointError))
    assert "\n" not in str(fault.value)


def test_what_changes_nothing_is_left_out(source: Path, opened: Bundle, tmp_path: Path) -> None:
    """Zeros of a text encoder, as trainers write them for parts that they skip."""
    name = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    none = {f"{name}.lora_down.weight": torch.ones(2, 32), f"{name}.lora_up.weight": torch.zeros(64, 2)}
    none |= {f"{name}.alpha": torch.tensor(2.0)}
    state = _other("kohya")(source)
    found = [
        changes(opened, loras.save(tmp_path / f"{index}.safetensors", (each, {})))
        for index, each in enumerate((state, state | none))
    ]
    for parameter, value in found[0].items():
        np.testing.assert_array_equal(found[1][parameter], value)


def test_ranks_of_several_count_together(source: Path, opened: Bundle, tmp_path: Path) -> None:
    paths = [
        loras.save(tmp_path / f"{seed}.safetensors", loras.FORMS["peft"](source, loras.update(source, seed)))
        for seed in range(3)
    ]
    read(opened, chosen(paths[:2]) or ())
    with pytest.raises(RequestError, match="together have a rank of 12, and the bundle takes 8"):
        read(opened, chosen(paths) or ())


def test_a_bundle_without_branches_says_how_to_get_them(
    bundle: Callable[..., Path], source: Path, tmp_path: Path
) -> None:
    path = loras.save(tmp_path / "lora.safetensors", loras.FORMS["peft"](source, loras.update(source)))
    with pytest.raises(
        RequestError, match="takes no LoRA at run time; build it with --lora-rank RANK, or merge"
    ):
        read(Bundle.open(bundle("dev-like"), check=False), chosen(path) or ())


def test_plain_graphs_are_the_same_bytes_and_weights_are_there_once(
    bundle: Callable[..., Path], lora_bundle: Path
) -> None:
    plain, opened = bundle("dev-like"), Bundle.open(lora_bundle)
    without = Bundle.open(plain)
    for name, stage in without.manifest.stages.items():
        assert (plain / stage.graph).read_bytes() == (lora_bundle / stage.graph).read_bytes(), name
    for name in ("conditioner", "denoiser"):
        own, other = opened.stage(name), opened.stage(f"{name}_lora")
        assert own.weights == other.weights
    weights = {path for path in opened.manifest.files if path.endswith(".safetensors")}
    assert weights == {path for path in without.manifest.files if path.endswith(".safetensors")}


def test_a_branch_adds_two_products_to_each_layer(lora_bundle: Path) -> None:
    for name, layers in (("denoiser", 1 + 8 + 2 * 2 + 1), ("conditioner", 6 + 1 + 2 + 2 + 1)):
        found = [
            sum(
                node.op_type in ("MatMul", "Gemm")
                for node in onnx.load(path, load_external_data=False).graph.node
            )
            for path in (lora_bundle / f"{name}.onnx", lora_bundle / f"{name}_lora.onnx")
        ]
        assert found == [layers, 3 * layers], name
