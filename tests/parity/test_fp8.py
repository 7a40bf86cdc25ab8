"""Bundles in fp8: what is quantised, what lies in the files, and what the graphs compute."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from flux_trt.exporter.graphs.weights import bytes_to_write
from flux_trt.exporter.quantise.e4m3 import Fp8, scale_of
from flux_trt.exporter.quantise.quantize import attention_scales, input_scales
from flux_trt.exporter.verify.eager import Eager
from flux_trt.exporter.verify.verify import relative_error, verify
from flux_trt.runtime.backends.connect import connect
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.manifest import StageName
from flux_trt.runtime.errors import BackendError, BuildError

Get = Callable[..., Path]
DENOISER = {
    *(
        f"double_blocks.0.{s}_{k}"
        for s in ("img", "txt")
        for k in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")
    ),
    *(f"single_blocks.{i}.linear{n}" for i in (0, 1) for n in (1, 2)),
}
T5 = {f"encoder.block.{i}.layer.0.SelfAttention.{n}" for i in (0, 1) for n in "qkvo"}
T5 |= {f"encoder.block.{i}.layer.1.DenseReluDense.{n}" for i in (0, 1) for n in ("wi_0", "wi_1", "wo")}


@pytest.mark.parametrize(("stage", "layers"), [("denoiser", DENOISER), ("t5", T5)])
def test_every_large_layer_is_quantised_and_no_other(
    fp8_bundle: Get, calibration: Path, stage: StageName, layers: set[str]
) -> None:
    path = fp8_bundle("fp32") / f"{stage}.onnx"
    model, seen = ir.load(path), json.loads(calibration.read_text())["layers"][stage]
    found = input_scales(model)
    assert set(found) == {f"{layer}.weight" for layer in layers}
    for layer in layers:
        assert found[f"{layer}.weight"] == float(scale_of(torch.tensor(seen[layer]["amax"]), torch.float32))
    small = {n for n, value in model.graph.initializers.items() if value.dtype == ir.DataType.FLOAT8E4M3FN}
    assert {name for name in small if not name.endswith("_zero")} == set(found)
    assert attention_scales(model) == []
    ops = Counter(node.op_type for node in model.graph)
    # T5's q, k and v read one rounded value, and so do wi_0 and wi_1.
    shared = {"denoiser": 0, "t5": 2 * (2 + 1)}[stage]
    assert ops["QuantizeLinear"] == len(layers) - shared
    assert ops["DequantizeLinear"] == 2 * len(layers) - shared


def test_halves_of_a_layer_share_its_range(fp8_bundle: Get, calibration: Path) -> None:
    """In 16 bits linear2 is two products, with the scale of the one that was calibrated."""
    model, seen = ir.load(fp8_bundle("bf16") / "denoiser.onnx"), json.loads(calibration.read_text())["layers"]
    products = [node for node in model.graph if node.op_type == "MatMul"]
    for block in ("single_blocks.0", "single_blocks.1"):
        weight = model.graph.initializers[f"{block}.linear2.weight"]
        (rounded,) = (use.node for use in weight.uses())
        slices = [use.node for use in rounded.outputs[0].uses()]
        assert [node.op_type for node in (rounded, *slices)] == ["DequantizeLinear", "Slice", "Slice"]
        turned = [use.node.outputs[0] for node in slices for use in node.outputs[0].uses()]
        layers = [node for node in products if node.inputs[1] in turned]
        scales = {node.inputs[0].producer().inputs[1].const_value.numpy().item() for node in layers}
        amax = seen["denoiser"][f"{block}.linear2"]["amax"]
        assert len(layers) == 2
        assert scales == {float(scale_of(torch.tensor(amax), torch.bfloat16))}


def test_attention_is_quantised_when_asked(fp8_bundle: Get, calibration: Path) -> None:
    seen = json.loads(calibration.read_text())["layers"]["denoiser"]
    blocks = ("double_blocks.0", "single_blocks.0", "single_blocks.1")
    expected = [[seen[f"{block}.attention.{head}"]["amax"] / 448 for head in "qkv"] for block in blocks]
    found = attention_scales(ir.load(fp8_bundle("fp32", attention=True) / "denoiser.onnx"))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("base", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_file_opens_with_the_safetensors_library(
    fp8_bundle: Get, checkpoint: Get, base: str, dtype: torch.dtype
) -> None:
    """And the weights in it are the checkpoint's, to half a step of E4M3."""
    with (
        safe_open(fp8_bundle(base) / "denoiser.safetensors", "pt") as file,
        safe_open(checkpoint("dev-like") / "transformer/diffusion_pytorch_model.safetensors", "pt") as exact,
    ):
        names = set(file.keys())
        assert {name for name in names if name.endswith("_scale")} == {f"{n}.weight_scale" for n in DENOISER}
        for layer in DENOISER:
            weight, scale = file.get_tensor(f"{layer}.weight"), file.get_tensor(f"{layer}.weight_scale")
            assert (weight.dtype, scale.dtype) == (torch.float8_e4m3fn, dtype)
            assert scale.shape == weight.shape[:1]
        assert file.get_tensor("img_in.weight").dtype == dtype
        assert file.get_tensor("final_layer.linear.weight").dtype == dtype
        weight = file.get_tensor("single_blocks.1.linear2.weight").float()
        weight *= file.get_tensor("single_blocks.1.linear2.weight_scale").float()[:, None]
        original = exact.get_tensor("single_transformer_blocks.1.proj_out.weight")
        largest = original.abs().amax(1, keepdim=True)
        error = (weight - original).abs()
        assert (error <= torch.maximum(original.abs() * 2**-4, largest * 2**-17)).all()
        assert error.max() > 1e-4, "nothing was rounded"


@pytest.mark.parametrize(("stage", "attention"), [("t5", False), ("denoiser", False), ("denoiser", True)])
def test_onnxruntime_and_torch_round_alike(
    fp8_bundle: Get, checkpoint: Get, stage: StageName, attention: bool
) -> None:
    """The graph in onnxruntime, and the module in torch with its inputs rounded by a cast: the same."""
    found = open_checkpoint(str(checkpoint("dev-like")))
    expected, root = recognise(found).case(stage), fp8_bundle("fp32", attention)
    record = manifest.read(root).stages[stage]
    outputs = {}
    for name, backend in (("onnxruntime", connect("onnxruntime", "cpu")), ("torch", Eager(recognise(found)))):
        graph = backend.load(root / record.graph, stage, record)
        run = graph.run({key: value.contiguous().numpy() for key, value in expected.inputs.items()})
        outputs[name] = run[record.outputs[-1].name].numpy()
    exact = expected.expected[record.outputs[-1].name].numpy()
    # A value on the edge between two of E4M3's may fall to either side: hence not to fp32's precision.
    assert relative_error(outputs["onnxruntime"], outputs["torch"]) < 5e-3
    assert 2e-3 < relative_error(outputs["onnxruntime"], exact) < 0.3


@pytest.mark.parametrize("base", ["bf16", "fp16"])
def test_verify_accepts_every_base(fp8_bundle: Get, base: str) -> None:
    rows = list(verify(fp8_bundle(base)))
    assert [row for row in rows if not row.passed] == []
    ran_on = {"bf16": {"torch cpu"}, "fp16": {"onnxruntime cpu"}}[base]
    assert ({row.precision for row in rows}, {row.ran_on for row in rows}) == ({"fp8"}, ran_on)
    assert min(row.error for row in rows) > 1e-3


def test_the_manifest_tells_the_base(fp8_bundle: Get) -> None:
    stages = manifest.read(fp8_bundle("fp16")).stages
    assert {name: (s.precision, s.base) for name, s in stages.items()} == {
        "t5": ("fp8", "fp32"),
        "denoiser": ("fp8", "fp16"),
    }
    shown = CliRunner().invoke(main, ["inspect", str(fp8_bundle("fp16"))])
    assert "fp8 on fp16" in shown.stdout


def test_onnxruntime_refuses_a_bf16_base_on_the_cpu(fp8_bundle: Get) -> None:
    root = fp8_bundle("bf16")
    record = manifest.read(root).stages["denoiser"]
    with pytest.raises(BackendError, match="is bf16, for which .*; use .* --base fp32 or fp16"):
        connect("onnxruntime", "cpu").load(root / record.graph, "denoiser", record)


@pytest.mark.parametrize("base", ["fp32", "bf16", "fp16"])
def test_graphs_pass_the_checker(fp8_bundle: Get, base: str) -> None:
    for stage in ("t5", "denoiser"):
        path = fp8_bundle(base) / f"{stage}.onnx"
        onnx.checker.check_model(path, full_check=True)
        assert path.stat().st_size < 1_000_000


def test_other_stages_have_the_base_precision(checkpoint: Get) -> None:
    model = recognise(open_checkpoint(str(checkpoint("dev-like"))))

    def precision_of(name: str, precision: Any, chosen: Any, base: Any = "bf16") -> tuple[str, str | None]:
        found = in_precision(precision, chosen, base, model.stage(name))
        return found.precision, found.base

    assert precision_of("denoiser", "fp8", {}) == ("fp8", "bf16")
    assert precision_of("t5", "fp8", {}, "fp16") == ("fp8", "fp32")
    assert precision_of("conditioner", "fp8", {}, "fp16") == ("fp16", None)
    assert precision_of("vae_decoder", "fp8", {}, "fp16") == ("fp32", None)
    assert precision_of("clip", "fp8", {"clip": "fp32"}) == ("fp32", None)
    assert precision_of("conditioner", "bf16", {"conditioner": "fp8"}, "fp32") == ("fp8", "fp32")
    with pytest.raises(BuildError, match="vae_decoder has no fp8; .* use vae_decoder=bf16"):
        precision_of("vae_decoder", "fp8", {"vae_decoder": "fp8"})


def test_a_calibration_of_other_weights_is_refused(
    checkpoint: Get, calibration: Path, tmp_path: Path
) -> None:
    command = ["build", str(checkpoint("schnell-like")), "--out", str(tmp_path / "b"), "--precision", "fp8"]
    done = CliRunner().invoke(main, [*command, "--calibration", str(calibration)])
    assert done.exit_code == 1
    assert f"Error: {calibration} was made with another t5; run flux-export calibrate" in done.stderr
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_build_calibrates_by_itself_once(
    checkpoint: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conditioner in fp8, as by --stage-precision, is the quickest to build."""
    prompts = "flux_trt.exporter.quantise.calibrate.built_in_prompts"
    monkeypatch.setattr(prompts, lambda: ["a lighthouse", "a cat"])
    out, lines, source = tmp_path / "bundle", [], str(checkpoint("dev-like"))
    options = {"stages": ["conditioner"], "stage_precisions": {"conditioner": "fp8"}, "tell": lines.append}
    found = build(source, out, fp8=Fp8(base="fp32"), **options)
    kept = tmp_path / "bundle.calibration.json"
    assert lines[1] == "krea cannot be told from dev by their files; --variant chooses"
    assert lines[2].startswith("calibrating with 2 built-in prompts at 64x64, 12 steps")
    assert lines[3] == f"calibration: {kept}"
    assert (found.stages["conditioner"].precision, found.stages["conditioner"].base) == ("fp8", "fp32")
    before, lines[:] = kept.read_bytes(), []
    again = build(source, out, fp8=Fp8(base="fp32"), **options)
    assert "conditioner: reused, nothing it is built from has changed" in lines
    assert not any(line.startswith("calibrating") for line in lines)
    assert (kept.read_bytes(), again.stages) == (before, found.stages)
    command = ["build", source, "--out", str(out), "--stages", "conditioner", "--base", "fp16"]
    command += ["--stage-precision", "conditioner=fp8", "--calibration", str(kept)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "conditioner: fp8" in done.stderr
    other = manifest.read(out).stages["conditioner"]
    assert (other.base, other.key == found.stages["conditioner"].key) == ("fp16", False)
    assert [row for row in verify(out) if not row.passed] == []


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_bytes_to_write_are_known_before(
    checkpoint: Get, calibration: Path, tmp_path: Path, per_channel: bool
) -> None:
    from dataclasses import replace

    from flux_trt.exporter.quantise.calibration import read
    from flux_trt.exporter.quantise.ranges import quantisation

    options = Fp8(base="fp32", per_channel=per_channel, calibration=calibration)
    chosen = {"conditioner": "fp8"}
    found = open_checkpoint(str(checkpoint("dev-like")))
    (stage,) = make_stages(recognise(found), "fp32", ["conditioner"], chosen, "fp32")
    stage = replace(stage, quantisation=quantisation(stage, read(calibration), options))
    source, out = str(checkpoint("dev-like")), tmp_path / "bundle"
    build(source, out, fp8=options, stages=["conditioner"], stage_precisions=chosen)
    with safe_open(out / "conditioner.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert sum(tensor.nbytes for tensor in tensors) == bytes_to_write(stage, {})
    assert [row for row in verify(out) if not row.passed] == []
