"""Model repositories for Triton, read with its own schema, and the commands of NVIDIA's builder."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from flux_trt.exporter.cli import main
from flux_trt.exporter.engines.engine import Options
from flux_trt.exporter.engines.profile import Shapes, default_shapes, profiles, shapes_of
from flux_trt.exporter.engines.triton import Served, config, write_repository
from flux_trt.exporter.engines.trtexec import trtexec
from flux_trt.runtime.bundle.bundle import Bundle

TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(uint8)": "TYPE_UINT8",
}


@pytest.fixture(scope="module")
def schema() -> Any:
    """The messages of Triton's own client, without the parts of it that need gRPC."""
    try:
        files = importlib.metadata.files("tritonclient") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tritonclient is not installed; make install takes it without its dependencies")
    (path,) = (each for each in files if each.match("tritonclient/grpc/model_config_pb2.py"))
    spec = importlib.util.spec_from_file_location("model_config_pb2", path.locate())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(schema: Any, path: Path) -> Any:
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(encoding="utf-8"), schema.ModelConfig())


@pytest.fixture(scope="module")
def repository(bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "models"
    words = ["engines", str(bundle("flux-nano")), "--backend", "onnxruntime", "--for", "triton"]
    done = CliRunner().invoke(main, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{out}: clip, t5, conditioner, denoiser, ")
    return out


def test_every_stage_is_a_model_of_triton_s_schema(
    schema: Any, repository: Path, bundle: Callable[..., Path]
) -> None:
    """And its graph, as Triton opens it, has those inputs and outputs in those types."""
    found = Bundle.open(bundle("flux-nano")).manifest
    models = {path.name for path in repository.iterdir()}
    assert models == {*found.stages, *found.glue, "conditions"}
    for name in models - {"conditions"}:
        said = parsed(schema, repository / name / "config.pbtxt")
        assert (said.name, said.backend, said.max_batch_size) == (name, "onnxruntime", 0)
        session = onnxruntime.InferenceSession(repository / name / "1" / "model.onnx")
        for told, there in ((said.input, session.get_inputs()), (said.output, session.get_outputs())):
            assert [each.name for each in told] == [each.name for each in there]
            for one, node in zip(told, there, strict=True):
                assert list(one.dims) == [dim if isinstance(dim, int) else -1 for dim in node.shape]
                assert schema.DataType.Name(one.data_type) == TYPES[node.type]


def test_the_ensemble_is_wired_as_the_stages_are(schema: Any, repository: Path) -> None:
    """What a step takes is an input of the ensemble or comes from a step before it; it runs so."""
    said = parsed(schema, repository / "conditions" / "config.pbtxt")
    assert said.platform == "ensemble"
    assert [step.model_name for step in said.ensemble_scheduling.step] == ["clip", "t5", "conditioner"]
    assert [each.name for each in said.input] == ["clip_ids", "t5_ids", "timesteps", "guidance"]
    denoiser = parsed(schema, repository / "denoiser" / "config.pbtxt")
    wanted = {each.name for each in denoiser.input} - {"latents", "dt", "cos", "sin"}
    assert {each.name for each in said.output} == wanted
    rng = np.random.default_rng(0)
    sizes = {"clip_ids": (1, 77), "t5_ids": (1, 32), "timesteps": (3,), "guidance": (1,)}
    known = {
        each.name: rng.integers(1, 60, sizes[each.name])
        if each.name.endswith("ids")
        else rng.random(sizes[each.name], np.float32)
        for each in said.input
    }
    for step in said.ensemble_scheduling.step:
        session = onnxruntime.InferenceSession(repository / step.model_name / "1" / "model.onnx")
        given = {inside: known[outside] for inside, outside in step.input_map.items()}
        names = [each.name for each in session.get_outputs()]
        for name, value in zip(names, session.run(names, given), strict=True):
            known[step.output_map[name]] = value
    assert known["modulation"].shape[:2] == (3, 1)
    assert known["context"].shape[1] == 32
    assert np.isfinite(known["modulation"]).all()


def test_an_engine_s_profiles_are_all_offered(
    schema: Any, bundle: Callable[..., Path], tmp_path: Path
) -> None:
    opened, plan = Bundle.open(bundle("flux-nano")), tmp_path / "plan"
    plan.write_bytes(b"a plan")
    served = {"denoiser": Served({"model.plan": plan}, 'platform: "tensorrt_plan"', 2)}
    assert write_repository(opened, served, tmp_path / "models") == ["denoiser"]
    said = parsed(schema, tmp_path / "models" / "denoiser" / "config.pbtxt")
    assert said.platform == "tensorrt_plan"
    (group,) = said.instance_group
    assert (list(group.profile), group.count) == (["0", "1"], 1)
    assert group.kind == schema.ModelInstanceGroup.KIND_GPU
    assert (tmp_path / "models" / "denoiser" / "1" / "model.plan").read_bytes() == b"a plan"
    assert "instance_group" not in config("clip", opened.manifest.graph("clip"), Served({}, "", 0))


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_the_command_has_the_shapes_of_every_profile(bundle: Callable[..., Path], backend: str) -> None:
    opened = Bundle.open(bundle("flux-nano"))
    shapes = Shapes(((64, 64), (96, 64)), max_batch=2, max_references=1)
    options = Options(flavour=backend, capabilities=("8.9", "12.0"), opt_level=3, weight_streaming=True)
    (line,) = trtexec(opened, ["denoiser"], shapes, options)
    tool, *words = shlex.split(line)
    assert tool == {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}[backend]
    assert ("--stronglyTyped" in words) == (backend == "tensorrt")
    assert ("--computeCapabilities=89,120" in words) == (backend == "tensorrt-rtx")
    assert {"--builderOptimizationLevel=3", "--allowWeightStreaming", "--skipInference"} <= set(words)
    (graph,) = (word.removeprefix("--onnx=") for word in words if word.startswith("--onnx="))
    assert Path(graph).is_file()
    made = profiles(opened.manifest, "denoiser", shapes)
    assert [word for word in words if word.startswith("--profile=")] == [
        f"--profile={index}" for index in range(len(made))
    ]
    stage = opened.manifest.graph("denoiser")
    for index, bound in enumerate(("min", "opt", "max")):
        said = [word.partition("=")[2] for word in words if word.startswith(f"--{bound}Shapes=")]
        assert said == [
            ",".join(
                f"{each.name}:{'x'.join(map(str, shapes_of(profile, each.dims)[index]))}"
                for each in stage.inputs
            )
            for profile in made
        ]


def test_a_line_for_each_stage_on_stdout(bundle: Callable[..., Path]) -> None:
    root = bundle("flux-nano")
    done = CliRunner().invoke(main, ["engines", str(root), "--backend", "tensorrt", "--for", "trtexec"])
    assert done.exit_code == 0, done.output
    found = Bundle.open(root).manifest
    assert len(done.stdout.splitlines()) == len(found.stages) + len(found.glue)
    assert not (root / "engines").exists()
    for line, name in zip(done.stdout.splitlines(), [*found.stages, *found.glue], strict=True):
        assert f"--saveEngine={name}.plan" in shlex.split(line)
        assert (len(profiles(found, name, default_shapes(found))) > 1) == ("--profile=1" in line)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backend", "onnxruntime"], "onnxruntime needs no engines; give --backend tensorrt"),
        (["--backend", "onnxruntime", "--for", "trtexec"], "onnxruntime runs the graphs as they are; give"),
        (["--backend", "tensorrt", "--for", "trtexec", "--rope", "plugin"], "leave --rope out"),
        (["--backend", "tensorrt", "--for", "trtexec", "--engines", "x"], "leave --engines and --force out"),
        (["--backend", "tensorrt", "--for", "trtexec", "--force"], "leave --engines and --force out"),
        (["--backend", "onnxruntime", "--for", "triton"], "say where with --out"),
        (
            ["--backend", "tensorrt-rtx", "--for", "triton", "--out", "x"],
            "Triton runs no plans of TensorRT-RTX",
        ),
        (
            ["--backend", "onnxruntime", "--for", "triton", "--out", "full"],
            "full is there already; give --out a",
        ),
        (["--backend", "tensorrt", "--out", "x"], "--out is of --for triton"),
    ],
)
def test_refused_in_one_line(
    tiny: Path, tmp_path: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = CliRunner().invoke(main, ["engines", str(tiny), *words])
    assert done.exit_code in (1, 2)
    assert said in done.output
    assert "Traceback" not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_repository_is_whole_or_not_there(tiny: Path, tmp_path: Path) -> None:
    """At a real limit: files are linked, and the first config cannot be written."""
    out = tmp_path / "models"
    command = [
        sys.executable,
        "-m",
        "flux_trt.exporter.cli",
        "engines",
        str(tiny),
        "--backend",
        "onnxruntime",
    ]
    command += ["--for", "triton", "--out", str(out)]
    script = f"ulimit -f 0; exec {shlex.join(command)} 2>&1 | cat"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Error: cannot write ")
    assert "config.pbtxt (File too large)" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_part_has_no_ensemble(tiny: Path, tmp_path: Path) -> None:
    words = ["engines", str(tiny), "--backend", "onnxruntime", "--for", "triton", "--stages", "clip,denoiser"]
    done = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "models")])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["clip", "denoiser"]
    weights = tmp_path / "models" / "denoiser" / "1" / "denoiser.safetensors"
    assert weights.read_bytes() == (tiny / "denoiser.safetensors").read_bytes()
