"""Quantised files that contradict themselves, or whose format is not decoded, are refused in one line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quantised_tensors import E4M3, MADE, REST, Tensors, layer, note, opened
from safetensors.torch import load_file

from flux_trt.runtime.errors import CheckpointError


def break_layer(**changed: torch.Tensor | None) -> Tensors:
    tensors = {**layer()[0], **{f"a.0.{name}": value for name, value in changed.items()}}
    return {name: value for name, value in tensors.items() if value is not None}


BROKEN: list[tuple[Tensors, str]] = [
    (break_layer(weight=None), "a.0.weight_scale has no a.0.weight"),
    (
        break_layer(weight_scale=None, comfy_quant=note({"format": "float8_e4m3fn"})),
        "a.0.weight has no scale",
    ),
    (break_layer(weight_scale=None, input_scale=torch.ones(())), "a.0.weight has no scale"),
    (break_layer(weight_scale=torch.rand(7)), r"the scale of a.0.weight \[5, 7\] is \[7\]"),
    (break_layer(weight_scale=torch.rand(0)), r"is \[0\]"),
    (break_layer(weight_scale=torch.tensor(float("nan"))), "is not finite"),
    (break_layer(weight_scale=torch.tensor([1, 2, math.inf, 1, 1])), "is not finite"),
    (break_layer(weight_scale=torch.tensor(3)), "is torch.int64"),
    (break_layer(scale_weight=torch.tensor(0.3)), "a.0 has both a.0"),
    (break_layer(weight=torch.randn(5, 7).bfloat16()), "is torch.bfloat16 and has an fp8 scale"),
    (
        break_layer(comfy_quant=note({"format": "float8_e5m2"})),
        "is said to be float8_e5m2 and is torch.float8_e4m3fn",
    ),
    (break_layer(comfy_quant=note(b"{")), "a.0.comfy_quant is no JSON"),
    (break_layer(comfy_quant=note(b"[" * 60000)), "a.0.comfy_quant is no JSON"),
    (break_layer(comfy_quant=note(b"\xff\xfe{")), "a.0.comfy_quant is no JSON"),
    (break_layer(comfy_quant=note([1])), "is no JSON object"),
    (break_layer(comfy_quant=note(b" " * 70000)), "at most 65536 bytes"),
    ({**break_layer(), "b.comfy_quant": note({})}, "b.comfy_quant has no b.weight"),
    ({**REST, "scaled_fp8": torch.zeros(2).to(E4M3)}, "scaled_fp8 announces scales and there are none"),
    ({**break_layer(), "a.1.weight": torch.ones(5, 7).to(E4M3)}, "a.1.weight has no scale and its like"),
]


@pytest.mark.parametrize(("tensors", "line"), BROKEN, ids=[line for _, line in BROKEN])
def test_scales_that_do_not_fit_are_refused(tmp_path: Path, tensors: Tensors, line: str) -> None:
    with pytest.raises(CheckpointError, match=line) as told:
        opened(tmp_path / "a.safetensors", tensors)
    assert str(told.value).startswith(str(tmp_path / "a.safetensors"))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"layers": 3}', '{"layers": {"a.0": 1}}', "[" * 100000])
def test_metadata_that_is_not_as_described_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match="_quantization_metadata"):
        opened(tmp_path / "a.safetensors", layer()[0], {"_quantization_metadata": text})


def four_bits(**changed: object) -> Tensors:
    tensors = {
        name: t for name, t in load_file(MADE / "bitsandbytes.safetensors").items() if name.startswith("nf4.")
    }
    key = "nf4.weight.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(tensors[key].tolist()))
    tensors[key] = note({**state, **{k: v for k, v in changed.items() if not isinstance(v, torch.Tensor)}})
    return tensors | {f"nf4.weight{k}": v for k, v in changed.items() if isinstance(v, torch.Tensor)}


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"shape": [7, 130]}, "do not fit its shape"),
        ({"shape": [7, -129]}, "no shape"),
        ({"shape": None}, "no shape"),
        ({"shape": [1 << 62, 1 << 62]}, "do not fit its shape"),
        ({"blocksize": 0}, "no shape or no block size"),
        ({"blocksize": True}, "no shape or no block size"),
        ({"blocksize": 128}, "do not fit its shape"),
        ({"quant_type": "fp4"}, "bitsandbytes 'fp4'"),
        ({".absmax": torch.ones(15, dtype=torch.uint8)}, "do not fit its shape"),
        ({".quant_map": torch.full((16,), math.nan)}, "are not all finite"),
        ({".nested_absmax": torch.ones(1)}, "nested_quant_map is missing"),
        ({"nested_offset": 10**400}, "no finite offset"),
    ],
)
def test_four_bits_that_do_not_fit_are_refused(tmp_path: Path, changed: dict[str, object], line: str) -> None:
    with pytest.raises(CheckpointError, match=line):
        opened(tmp_path / "a.safetensors", four_bits(**changed))


def test_parts_of_four_and_eight_bits_alone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    lost = four_bits()
    del lost["nf4.weight.quant_state.bitsandbytes__nf4"]
    for tensors, line in (
        (lost, "has no quant_state"),
        ({"a.SCB": torch.ones(3)}, "a.weight is no int8 matrix"),
        ({"a.weight": torch.ones(3, 2).char(), "a.SCB": torch.ones(2)}, r"\[3, 2\] are \[2\]"),
        ({"a.weight": torch.ones(3, 2).char(), "a.SCB": torch.full((3,), math.inf)}, "not all finite"),
        (
            {"a.weight": torch.ones(3, 2).char(), "a.weight_format": torch.tensor(1).byte()},
            "a GPU's own order",
        ),
        ({"a._weight_scale": torch.ones(3, 1)}, "has no _weight_qdata beside it"),
        ({"a._weight_qdata": torch.ones(3, 2).to(E4M3)}, "has no _weight_scale beside it"),
        ({"a._weight_qdata": torch.ones(3, 2).char()}, "is torchao Float8Tensor"),
    ):
        with pytest.raises(CheckpointError, match=line):
            opened(path, tensors)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["shape", "blocksize", "quant_type", "format", "params"]), inner
            )
        ),
        max_leaves=8,
    )
)
def test_no_note_is_a_traceback(tmp_path: Path, said: object) -> None:
    key = "nf4.weight.quant_state.bitsandbytes__nf4"
    for tensors in ({**four_bits(), key: note(said)}, break_layer(comfy_quant=note(said))):
        with pytest.raises(CheckpointError):
            opened(tmp_path / "a.safetensors", tensors)


INT8 = torch.ones(4, 3, dtype=torch.int8)
REFUSED: list[tuple[Tensors, str]] = [
    (
        {
            "single_transformer_blocks.0.mlp_fc1.qweight": INT8,
            "single_transformer_blocks.0.mlp_fc1.wscales": REST["a.0.bias"],
        },
        "Nunchaku SVDQuant",
    ),
    ({"a.qweight": INT8.int(), "a.qzeros": INT8.int(), "a.scales": torch.ones(3)}, "AWQ"),
    ({"a.qweight": INT8.int(), "a.qzeros": INT8.int(), "a.scales": torch.ones(3), "a.g_idx": INT8}, "GPTQ"),
    (
        {"a.weight._data": INT8, "a.weight._scale": torch.ones(4, 1), "a.input_scale": torch.ones(())},
        "quanto",
    ),
    (
        {
            "a.weight": INT8.byte(),
            "a.weight_scale": torch.ones(4, 1).to(E4M3),
            "a.weight_scale_2": torch.ones(()),
        },
        "NVFP4",
    ),
    (
        {
            "a.weight": INT8.byte(),
            "a.weight_scale": torch.ones(4, 1).to(E4M3),
            "a.comfy_quant": note({"format": "nvfp4"}),
        },
        "NVFP4",
    ),
    ({"a.weight": INT8.to(E4M3), "a.weight_scale": INT8[:, :1].byte()}, "MXFP8"),
    ({"a.weight": INT8.to(E4M3), "a.weight_scale": torch.ones(4, 1).to(torch.float8_e8m0fnu)}, "MXFP8"),
    ({"a.weight": INT8.to(E4M3), "a.weight_scale": torch.ones(2, 3)}, "fp8 with a scale per block"),
    ({"a.weight": INT8, "a.weight_scale": torch.ones(4, 1)}, "int8 with scales"),
    (
        {
            "a.weight": torch.ones(4, 1, dtype=torch.uint32),
            "a.scales": torch.ones(4, 1),
            "a.biases": torch.ones(4, 1),
        },
        "MLX",
    ),
    *(
        ({"a.weight": INT8, "a.weight_scale": torch.ones(4, 1), "a.comfy_quant": note(said)}, name)
        for said, name in (
            ({"format": "int8_tensorwise"}, "ComfyUI int8"),
            ({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}, "ConvRot"),
            ({"convrot": True}, "ConvRot"),
            ({"format": "convrot_w4a4"}, "ConvRot"),
            ({"format": "int8_tensorwise", "params": {"convrot": True}}, "ConvRot"),
            ({"format": "mxfp8"}, "MXFP8"),
            ({"format": "fp9"}, "quantised in a format called 'fp9'"),
            ({}, "quantised in a format called 'None'"),
        )
    ),
]


@pytest.mark.parametrize(("tensors", "name"), REFUSED)
def test_other_formats_are_refused_by_name(tmp_path: Path, tensors: Tensors, name: str) -> None:
    with pytest.raises(CheckpointError) as told:
        opened(tmp_path / "a.safetensors", tensors)
    assert str(told.value).startswith(f"{tmp_path / 'a.safetensors'} is {name}, which is not decoded (")
    assert str(told.value).endswith(
        "; give the bf16 one that it was made from, or one in scaled fp8, NF4 or GGUF"
    )


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"quant_method": "quanto", "weights_dtype": "float8"}, "quanto"),
        ({"quant_method": "nunchaku_lite"}, "Nunchaku SVDQuant"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            "compressed-tensors pack-quantized",
        ),
        ({"quant_method": "modelopt", "quant_type": "NVFP4"}, "modelopt NVFP4"),
        ({"quant_method": "brand-new"}, "quantised by a method called 'brand-new'"),
        ({}, "quantised by a method called 'None'"),
    ],
)
def test_other_methods_are_refused_by_name(tmp_path: Path, config: dict[str, str], name: str) -> None:
    with pytest.raises(CheckpointError, match=f"is {name}, which is not decoded \\(quantization_config\\)"):
        opened(tmp_path / "a.safetensors", REST, config={"quantization_config": config})
    with pytest.raises(CheckpointError, match="is no JSON object"):
        opened(tmp_path / "a.safetensors", REST, config={"quantization_config": [config]})
