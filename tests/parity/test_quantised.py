"""Bundles in int8, w8a16, w4a16 and nvfp4: what lies in the files, and what the graphs compute."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from flux_trt.exporter.build import build
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.cli import main
from flux_trt.exporter.families.plan import in_precision, make_stages
from flux_trt.exporter.families.recognise import recognise
from flux_trt.exporter.families.stage import large_layers
from flux_trt.exporter.quantise.chosen import apart, formats_of
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.verify.eager import Eager
from flux_trt.exporter.verify.verify import relative_error, verify
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.errors import BackendError, BuildError

Get = Callable[..., Path]
KINDS = {
    "int8": ir.DataType.INT8,
    "w8a16": ir.DataType.INT8,
    "w4a16": ir.DataType.INT4,
    "nvfp4": ir.DataType.FLOAT4E2M1,
}
ROUNDED = {"int8": "QuantizeLinear", "nvfp4": "TRT_FP4DynamicQuantize"}
LAYERS = 8 + 2 * 2


@pytest.mark.parametrize("precision", KINDS)
def test_every_large_layer_is_quantised_and_no_other(quantised_denoiser: Get, precision: str) -> None:
    root = quantised_denoiser(precision)
    graph = ir.load(root / "denoiser.onnx").graph
    codes = {name for name, value in graph.initializers.items() if value.dtype == KINDS[precision]}
    weights = {name for name in codes if name.endswith(".weight")}
    assert len(weights) == LAYERS
    assert all(name.startswith(("double_blocks.", "single_blocks.")) for name in weights)
    ops = Counter(node.op_type for node in graph)
    for op in ("QuantizeLinear", "TRT_FP4DynamicQuantize"):
        assert ops[op] == (LAYERS if ROUNDED.get(precision) == op else 0)
    onnx.checker.check_model(root / "denoiser.onnx", full_check=precision != "nvfp4")
    record = manifest.read(root).stages["denoiser"]
    assert (record.precision, record.base) == (precision, "fp32")
    shown = CliRunner().invoke(main, ["inspect", str(root)])
    assert f"{precision} on fp32" in shown.stdout


def numbers(file: object, name: str, precision: str) -> np.ndarray:
    """The weight [out, in], by NumPy alone."""
    codes, scale = (file.get_tensor(name + suffix) for suffix in ("", "_scale"))
    if precision in ("int8", "w8a16"):
        return codes.numpy().T * scale.numpy()[:, None]
    pairs = codes.numpy()
    halves = np.stack([pairs & 0xF, pairs >> 4], -1).reshape(len(pairs), -1)
    if precision == "w4a16":
        signed = np.where(halves > 7, halves.astype(np.int8) - 16, halves)
        return (signed * np.repeat(scale.numpy(), 64, 0)).T
    blocks = scale.float().numpy() * float(file.get_tensor(f"{name}_scale_2"))
    return halves.view(ml_dtypes.float4_e2m1fn).astype(np.float32) * np.repeat(blocks, 16, 1)


@pytest.mark.parametrize(
    ("precision", "lost"), [("int8", 0.01), ("w8a16", 0.01), ("w4a16", 0.12), ("nvfp4", 0.12)]
)
def test_the_file_has_the_checkpoint_s_weights(
    quantised_denoiser: Get, checkpoint: Get, precision: str, lost: float
) -> None:
    name, theirs = "single_blocks.1.linear2.weight", "single_transformer_blocks.1.proj_out.weight"
    source = checkpoint("wide-like") / "transformer/diffusion_pytorch_model.safetensors"
    with (
        safe_open(quantised_denoiser(precision) / "denoiser.safetensors", "pt") as file,
        safe_open(source, "pt") as of,
    ):
        found, exact = numbers(file, name, precision), of.get_tensor(theirs).float().numpy()
    apart_by = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert lost / 10 < apart_by < lost


def velocities(root: Path, backend: object, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    record = manifest.read(root).stages["denoiser"]
    graph = backend.load(root / record.graph, "denoiser", record)
    return graph.run({key: value.contiguous().numpy() for key, value in inputs.items()})["velocity"].numpy()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["int8", "w8a16", "w4a16"])
def test_backends_compute_what_torch_does(
    quantised_denoiser: Get, checkpoint: Get, precision: str, backend: str
) -> None:
    """Of weights alone to float32's own precision: what comes in is not rounded behind our back."""
    model, root = recognise(open_checkpoint(str(checkpoint("wide-like")))), quantised_denoiser(precision)
    case = model.case("denoiser")
    exact = case.expected["velocity"].detach().numpy()
    simulated = velocities(root, Eager(model), case.inputs)
    found = velocities(root, connect(backend, "cpu"), case.inputs)
    loss = relative_error(simulated, exact)
    assert relative_error(found, simulated) < (1e-5 if precision != "int8" else max(0.5 * loss, 1e-2))
    assert 1e-4 < loss < {"int8": 0.1, "w8a16": 0.05, "w4a16": 0.4}[precision]


@pytest.mark.parametrize("precision", KINDS)
def test_verify_knows_it(quantised_denoiser: Get, precision: str) -> None:
    rows = list(verify(quantised_denoiser(precision)))
    assert [row for row in rows if not row.passed] == []
    ran_on = "torch cpu" if precision == "nvfp4" else "onnxruntime cpu"
    assert {(row.precision, row.ran_on) for row in rows} == {(precision, ran_on)}
    assert min(row.error for row in rows) > 1e-4


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_nvfp4_is_refused_on_a_cpu(quantised_denoiser: Get, backend: str) -> None:
    root = quantised_denoiser("nvfp4")
    record = manifest.read(root).stages["denoiser"]
    with pytest.raises(BackendError, match="denoiser is nvfp4, for which only TensorRT has operators; use"):
        connect(backend, "cpu").load(root / record.graph, "denoiser", record)


def test_a_narrower_layer_takes_what_fits(checkpoint: Get) -> None:
    """dev-like's T5 is 80 and 96 wide: no blocks of 64."""
    model = recognise(open_checkpoint(str(checkpoint("dev-like"))))
    (t5,) = make_stages(model, "fp32", ["t5"], {"t5": "w4a16"}, "fp32")
    assert set(formats_of(t5).values()) == {"w8a16"}
    assert apart(t5) == "t5: of 14 layers 14 in w8a16: they are no multiple of 64 wide"
    (t5,) = make_stages(model, "fp32", ["t5"], {"t5": "nvfp4"}, "fp32")
    assert set(formats_of(t5).values()) == {"nvfp4"}
    assert apart(t5) is None
    assert list(formats_of(t5)) == large_layers(t5)


def test_texts_take_what_is_safer(checkpoint: Get) -> None:
    model = recognise(open_checkpoint(str(checkpoint("dev-like"))))

    def plan(precision: str, chosen: dict[str, str] | None = None, base: str = "bf16") -> dict[str, tuple]:
        stages = [in_precision(precision, chosen or {}, base, model.stage(name)) for name in model.parts]
        return {stage.name: (stage.precision, stage.base) for stage in stages}

    assert plan("int8", base="fp16")["t5"] == ("w8a16", "fp32")
    assert plan("int8", base="fp16")["denoiser"] == ("int8", "fp16")
    assert plan("w4a16")["t5"] == plan("w8a16")["t5"] == ("w8a16", "bf16")
    assert plan("nvfp4")["t5"] == ("fp8", "bf16")
    assert plan("w4a16", {"t5": "w4a16"})["t5"] == ("w4a16", "bf16")
    assert plan("nvfp4")["vae_decoder"] == plan("nvfp4")["conditioner"] == ("bf16", None)
    with pytest.raises(BuildError, match="vae_decoder has no int8; nothing in it is quantised: use"):
        plan("int8", {"vae_decoder": "int8"})


def test_weights_alone_need_no_calibration_and_take_loras(checkpoint: Get, tmp_path: Path) -> None:
    """Branches on the same weights; without a LoRA both stages are what they were."""
    source, lines = str(checkpoint("dev-like")), []
    found = build(
        source,
        tmp_path / "b",
        precision="w8a16",
        fp8=Fp8(base="fp32"),
        stages=["denoiser"],
        lora_rank=2,
        tell=lines.append,
    )
    assert not any("calibrat" in line for line in lines)
    assert found.stages["denoiser_lora"].weights == found.stages["denoiser"].weights
    rows = list(verify(tmp_path / "b"))
    assert {row.stage for row in rows} == {"denoiser", "denoiser_lora"}
    assert [row for row in rows if not row.passed] == []


def test_what_needs_a_precision_is_refused_without(
    checkpoint: Get, wide_calibration: Path, tmp_path: Path
) -> None:
    command = ["build", str(checkpoint("wide-like")), "--out", str(tmp_path / "b")]
    for options, said in (
        (
            ["--precision", "w8a16", "--calibration", str(wide_calibration)],
            "--calibration goes with --precision fp8, int8",
        ),
        (["--precision", "int8", "--fp8-attention"], "--fp8-attention goes with --precision fp8 or nvfp4."),
        (
            ["--precision", "bf16", "--base", "fp16"],
            "--base goes with --precision fp8, int8, w8a16, w4a16 or nvfp4.",
        ),
    ):
        done = CliRunner().invoke(main, [*command, *options])
        assert done.exit_code == 2
        assert said in done.output
    fp8 = Fp8(base="fp32", attention=True, calibration=wide_calibration)
    with pytest.raises(BuildError, match="is in int8, and attention in fp8 goes with fp8 or nvfp4; leave"):
        build(str(checkpoint("wide-like")), tmp_path / "b", precision="int8", fp8=fp8, stages=["denoiser"])
    assert list(tmp_path.iterdir()) == []


def test_one_calibration_serves_all(quantised_denoiser: Get, wide_calibration: Path) -> None:
    """The ranges in int8's and in nvfp4's graphs are the same ones."""
    from flux_trt.exporter.quantise.quantize import input_scales

    seen = json.loads(wide_calibration.read_text())["layers"]["denoiser"]
    for precision, largest in (("int8", 127), ("nvfp4", 6 * 448)):
        for weight, scale in input_scales(ir.load(quantised_denoiser(precision) / "denoiser.onnx")).items():
            assert scale == pytest.approx(seen[weight.removesuffix(".weight")]["amax"] / largest, rel=1e-6)
