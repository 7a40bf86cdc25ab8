"""FLOPs and bytes counted from graphs, against PyTorch's own counter on diffusers' modules."""

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from onnx import TensorProto, helper, numpy_helper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel, T5EncoderModel

from flux_trt.bench.errors import BenchError
from flux_trt.bench.flops import count, count_graph
from flux_trt.bench.roofline import roof
from flux_trt.bench.schema import Ceilings, Count
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.tasks.request import Request

TEXT, CLIP = 32, 77


def counted(work):
    """PyTorch's count; its fused attention on a CPU is not in its tables, the plain one is."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize(("width", "height", "batch"), [(64, 64, 1), (96, 48, 2)])
def test_the_count_is_pytorchs(bundle, checkpoint, width, height, batch):
    folder = checkpoint("flux-nano")
    transformer = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    rows, columns = height // 16, width // 16
    L, D = rows * columns, transformer.config.joint_attention_dim

    def denoise():
        transformer(
            hidden_states=torch.randn(batch, L, 64),
            encoder_hidden_states=torch.randn(batch, TEXT, D),
            pooled_projections=torch.randn(batch, transformer.config.pooled_projection_dim),
            timestep=torch.ones(batch),
            img_ids=torch.zeros(L, 3),
            txt_ids=torch.zeros(TEXT, 3),
            guidance=torch.ones(batch),
        )

    opened = Bundle.open(bundle("flux-nano"), check=False)
    size = (width, height)
    request = Request.of(opened.manifest, ["a"] * batch, size=size, steps=1, batch=batch)
    found = {
        name: count(opened, name, request).matrix_flops
        for name in opened.manifest.stages
        if name != "vae_encoder"
    }
    # One step: the two stages that the transformer is split into do together what it does, but that they
    # embed the time once for the whole batch.
    once = counted(lambda: transformer.time_text_embed.timestep_embedder(torch.randn(1, 256)))
    assert found["conditioner"] + found["denoiser"] + (batch - 1) * once == counted(denoise)
    decode = lambda: vae.decode(torch.randn(batch, 16, 2 * rows, 2 * columns))  # noqa: E731
    assert found["vae_decoder"] == counted(decode)
    clip = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    t5 = T5EncoderModel.from_pretrained(folder, subfolder="text_encoder_2")
    assert found["clip"] == counted(lambda: clip(torch.ones(batch, CLIP, dtype=torch.long)))
    assert found["t5"] == counted(lambda: t5(torch.ones(batch, TEXT, dtype=torch.long)))


def test_bytes_of_a_stage(bundle):
    opened = Bundle.open(bundle("flux-nano"), check=False)
    request = Request.of(opened.manifest, ["a"], steps=7)
    found = count(opened, "denoiser", request)
    stage = opened.manifest.stages["denoiser"]
    assert found.weight_bytes == pytest.approx(
        sum(opened.manifest.files[f].bytes for f in stage.weights), rel=0.01
    )
    latents, context, modulation, tables = 16 * 64, 32 * 192, 38 * 192, 2 * 48 * 32
    assert found.io_bytes == 4 * (3 * latents + 16 + context + modulation + tables)
    assert found.unfused_bytes > found.weight_bytes + found.io_bytes


def save(path, nodes, inputs, weights=()):
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in inputs.items()]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", given, made, [numpy_helper.from_array(w, n) for n, w in weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("node", "shapes", "flops"),
    [
        (helper.make_node("MatMul", ["a", "b"], ["y"]), {"a": (2, 3, 5), "b": (5, 7)}, 2 * 2 * 3 * 5 * 7),
        (helper.make_node("Gemm", ["a", "b"], ["y"], transA=1), {"a": (5, 3), "b": (5, 7)}, 2 * 3 * 5 * 7),
        (
            helper.make_node("Conv", ["a", "b"], ["y"], group=2, pads=[1, 1, 1, 1]),
            {"a": (1, 4, 8, 8), "b": (6, 2, 3, 3)},
            2 * 6 * 64 * 2 * 9,
        ),
        (
            helper.make_node("Attention", ["a", "b", "c"], ["y"]),
            {"a": (2, 4, 6, 8), "b": (2, 4, 10, 8), "c": (2, 4, 10, 8)},
            2 * 2 * (2 * 4 * 6 * 10 * 8),
        ),
        (
            helper.make_node("Attention", ["a", "b", "c"], ["y"], q_num_heads=4, kv_num_heads=4),
            {"a": (2, 6, 32), "b": (2, 10, 32), "c": (2, 10, 32)},
            2 * 2 * (2 * 4 * 6 * 10 * 8),
        ),
    ],
    ids=["MatMul", "Gemm", "grouped Conv", "Attention 4-D", "Attention 3-D"],
)
def test_products(tmp_path, node, shapes, flops):
    path = save(tmp_path / "g.onnx", [node], dict.fromkeys(shapes, None) | shapes)
    assert count_graph(path, shapes).matrix_flops == flops


def test_shapes_that_are_computed_in_the_graph(tmp_path):
    """Reshape to (first dim of x, -1), as exporters write it; onnx alone cannot tell what it gives."""
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Concat", ["n", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["flat"], allowzero=1),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    weights = [("rest", np.array([-1])), ("w", np.zeros((12, 5), np.float32))]
    path = save(tmp_path / "g.onnx", nodes, {"x": ("n", 3, 4)}, weights)
    found = count_graph(path, {"x": (7, 3, 4)})
    assert found.matrix_flops == 2 * 7 * 12 * 5
    assert found.other_flops == 0
    assert found.weight_bytes == 8 + 4 * 12 * 5


def test_a_shape_that_hangs_on_values_is_refused(tmp_path):
    path = save(tmp_path / "g.onnx", [helper.make_node("NonZero", ["x"], ["y"])], {"x": (3,)})
    with pytest.raises(BenchError, match=r"g\.onnx: the shape of y \(NonZero\) cannot be told"):
        count_graph(path, {"x": (3,)})


def test_the_nearer_ceiling():
    machine = Ceilings(matrix_gflops={"fp32": 100.0}, measured_with={"fp32": "numpy"}, copy_gbs=10.0)
    work = Count(matrix_flops=9e8, other_flops=1e8, weight_bytes=2e7, io_bytes=1e7, unfused_bytes=9e9)
    found = roof("denoiser", work, machine, "fp32", time_ms=20.0)
    assert (found.compute_ms, found.memory_ms, found.bound, found.fraction) == (10.0, 3.0, "compute", 0.5)
    idle = roof("t5", work.model_copy(update={"matrix_flops": 0}), machine, "fp32", time_ms=None)
    assert (idle.bound, idle.fraction) == ("memory", None)
    with pytest.raises(BenchError, match="no matrix rate of fp16"):
        roof("t5", work, machine, "fp16", 1.0)
