"""The shape of the exported graphs: which operators, how often, under which names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from flux_trt.runtime.bundle import manifest

DOUBLE, SINGLE = 2, 4


@pytest.fixture(scope="module")
def denoiser(bundle: Callable[..., Path]) -> onnx.ModelProto:
    return onnx.load(bundle("flux-nano") / "denoiser.onnx", load_external_data=False)


def test_one_native_operator_for_each_idea(denoiser: onnx.ModelProto) -> None:
    found = Counter(node.op_type for node in denoiser.graph.node)
    blocks = DOUBLE + SINGLE
    assert found["Attention"] == blocks
    assert found["QKNormRope"] == 2 * DOUBLE + SINGLE
    assert found["LayerNormalization"] == 4 * DOUBLE + SINGLE + 1
    assert found["MatMul"] == 1 + 8 * DOUBLE + 2 * SINGLE + 1
    assert found["Gelu"] == 2 * DOUBLE + SINGLE
    assert not set(found) & {"SequenceAt", "SplitToSequence", "If", "Loop", "Scan", "Einsum", "Cast"}
    nodes = [node for node in denoiser.graph.node if node.op_type == "QKNormRope"]
    assert {node.domain for node in nodes} == {"flux"}
    assert {tuple((each.name, round(each.f, 9) or each.i) for each in node.attribute) for node in nodes} == {
        (("num_heads", 3), ("epsilon", 1e-6))
    }
    (rope,) = denoiser.functions
    assert (rope.domain, rope.name) == ("flux", "QKNormRope")
    body = Counter(node.op_type for node in rope.node)
    assert (body["RotaryEmbedding"], body["RMSNormalization"]) == (2, 2)
    assert all(node.domain == "" for node in rope.node)


def test_16_bits_have_the_form_that_tensorrt_keeps_16_bits_in(bundle: Callable[..., Path]) -> None:
    """Residuals that subtract -x, squares of |x|, linear2 as two products of what is never joined."""
    found = onnx.load(bundle("flux-nano", "bf16") / "denoiser.onnx", load_external_data=False)
    ops = Counter(node.op_type for node in found.graph.node)
    assert ops["Neg"] == 4 * DOUBLE + SINGLE
    assert ops["MatMul"] == 1 + 8 * DOUBLE + 3 * SINGLE + 1
    makers = {output: node.op_type for node in found.graph.node for output in node.output}
    products = [node for node in found.graph.node if node.op_type == "MatMul"]
    assert "Concat" not in {makers.get(node.input[0]) for node in products}
    (rope,) = found.functions
    body = Counter(node.op_type for node in rope.node)
    assert (body["Abs"], body["RMSNormalization"], body["RotaryEmbedding"]) == (2, 0, 2)


def test_parameters_keep_the_names_of_the_checkpoint(denoiser: onnx.ModelProto) -> None:
    names = {tensor.name for tensor in denoiser.graph.initializer}
    assert {
        "img_in.weight",
        "double_blocks.0.img_attn.qkv.weight",
        "double_blocks.1.txt_mlp.2.bias",
        "single_blocks.3.linear1.weight",
        "single_blocks.0.norm.key_norm.scale",
        "final_layer.linear.bias",
    } <= names
    assert not any("mod" in name and "lin" in name for name in names), "modulation is the conditioner's"


def test_external_data_is_the_safetensors_entry(
    bundle: Callable[..., Path], denoiser: onnx.ModelProto
) -> None:
    from flux_trt.exporter.checkpoints.tensorfile import read_header

    header = read_header(bundle("flux-nano") / "denoiser.safetensors")
    seen = set()
    for tensor in denoiser.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where:
            info = header[tensor.name]
            assert where["location"] == "denoiser.safetensors"
            assert (int(where["offset"]), int(where["length"])) == (info.offset, info.nbytes)
            assert tuple(tensor.dims) == info.shape
            seen.add(tensor.name)
    assert seen == set(header)


STAGES = {
    "clip": (["ids int64 [batch, 77]"], ["pooled float32 [batch, 64]"]),
    "t5": (["ids int64 [batch, text]"], ["text float32 [batch, text, 128]"]),
    "conditioner": (
        [
            "timesteps float32 [steps]",
            "pooled float32 [batch, 64]",
            "text float32 [batch, text, 128]",
            "guidance float32 [batch]",
        ],
        ["modulation float32 [steps, batch, 38, 192]", "context float32 [batch, text, 192]"],
    ),
    "denoiser": (
        [
            "latents float32 [batch, tokens, 64]",
            "dt float32 [batch, tokens, 1]",
            "context float32 [batch, text, 192]",
            "modulation float32 [batch, 38, 192]",
            "cos float32 [sequence, 32]",
            "sin float32 [sequence, 32]",
        ],
        ["next_latents float32 [batch, tokens, 64]", "velocity float32 [batch, tokens, 64]"],
    ),
    "vae_encoder": (
        ["image float32 [batch, height, width, 3]"],
        ["latents float32 [batch, h, w, 64]", "deviation float32 [batch, h, w, 64]"],
    ),
    "vae_decoder": (["latents float32 [batch, h, w, 64]"], ["image uint8 [batch, height, width, 3]"]),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_contract_is_in_the_graph_and_in_the_manifest(
    bundle: Callable[..., Path], stage: str, precision: str
) -> None:
    root = bundle("flux-nano", precision)
    graph = onnx.load(root / f"{stage}.onnx", load_external_data=False).graph
    record = manifest.read(root).stages[stage]

    def told(value: onnx.ValueInfoProto) -> str:
        kind = value.type.tensor_type
        dtype = {1: "float32", 2: "uint8", 7: "int64"}[kind.elem_type]
        return f"{value.name} {dtype} [{', '.join(d.dim_param or str(d.dim_value) for d in kind.shape.dim)}]"

    def recorded(tensor: manifest.Tensor) -> str:
        return f"{tensor.name} {tensor.dtype} [{', '.join(map(str, tensor.dims))}]"

    inputs, outputs = STAGES[stage]
    assert ([told(v) for v in graph.input], [told(v) for v in graph.output]) == (inputs, outputs)
    assert ([recorded(t) for t in record.inputs], [recorded(t) for t in record.outputs]) == (inputs, outputs)
