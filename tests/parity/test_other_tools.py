"""Tools that are not ours read the graphs, and what they make of them computes the same.

The commands are those of docs/bundle.md. Dims: text 3, tokens 4 x 4, so sequence is 19.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from flux_trt.exporter.build import build
from flux_trt.exporter.engines.engine import Options, build_engines
from flux_trt.exporter.verify.verify import relative_error
from flux_trt.runtime import Pipeline
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.errors import BuildError

DIMS = {"batch": 1, "text": 3, "tokens": 16, "sequence": 19}
STANDARD = {"", "ai.onnx"}
PLACES = ("denoiser", "t5", "clip", "conditioner", "vae_encoder", "vae_decoder")
SCRIPT = """
import sys
from importlib.metadata import entry_points
sys.argv = sys.argv[1:]
if sys.argv[0] == "polygraphy":  # its script is no entry point
    from polygraphy.tools import main
else:
    main = next(iter(entry_points(group="console_scripts", name=sys.argv[0]))).load()
sys.exit(main())
"""
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def inlined(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inlined") / "bundle"
    build(str(checkpoint("dev-like")), out, inline=True, link=False)
    return out


@pytest.fixture(scope="module")
def plain(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same denoiser with its function; no links, as onnx refuses them."""
    out = tmp_path_factory.mktemp("plain") / "bundle"
    build(str(checkpoint("dev-like")), out, stages=["denoiser"], link=False)
    return out


@pytest.fixture(scope="module")
def inputs(inlined: Path) -> Arrays:
    """What the denoiser takes, at random."""
    drawn = np.random.default_rng(5)
    tensors = manifest.read(inlined).stages["denoiser"].inputs
    return {
        each.name: drawn.normal(size=[DIMS.get(dim, dim) for dim in each.dims]).astype(each.dtype)
        for each in tensors
    }


@pytest.fixture(scope="module")
def expected(plain: Path, inputs: Arrays) -> list[np.ndarray]:
    """What the graph with functions makes of it."""
    return run(plain / "denoiser.onnx", inputs)


def run(graph: Path, inputs: Arrays) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, inputs)


def command(*words: str | Path, fails: bool = False) -> str:
    """Run a tool in this environment, wherever its script lies; what it says on both streams."""
    line = [sys.executable, "-c", SCRIPT, *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 1e-5  # fp32; kernels add up in another order


def test_inlined_graphs_have_standard_operators_alone(inlined: Path, plain: Path) -> None:
    for name in PLACES:
        model = onnx.load(inlined / f"{name}.onnx", load_external_data=False)
        assert not model.functions
        assert {opset.domain for opset in model.opset_import} <= STANDARD
        assert {node.domain for node in model.graph.node} <= STANDARD
    with_functions = onnx.load(plain / "denoiser.onnx", load_external_data=False)
    assert {node.op_type for node in with_functions.graph.node if node.domain == "flux"} == {"QKNormRope"}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_inlined_graphs_paint_the_same(inlined: Path, bundle: Callable[[str], Path], backend: str) -> None:
    asked = {"size": (48, 64), "steps": 2, "seed": 3}
    pictures = []
    for root in (bundle("dev-like"), inlined):
        with Pipeline.load(root, backend=backend, device="cpu") as pipeline:
            pictures.append(np.asarray(pipeline.generate("a red circle", **asked)[0]).astype(int))
    assert pictures[0].std() > 5
    difference = np.abs(pictures[0] - pictures[1]).max()
    assert difference <= (0 if backend == "onnxruntime" else 1)  # our converter has another order of sums


def test_inlining_is_part_of_a_stages_key(
    inlined: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    out, told = tmp_path / "b", list[str]()
    shutil.copytree(inlined, out)
    build(str(checkpoint("dev-like")), out, stages=["denoiser"], link=False, tell=told.append)
    assert not any("reused" in line for line in told)
    assert onnx.load(out / "denoiser.onnx", load_external_data=False).functions


def test_the_plugin_is_refused_for_an_inlined_graph(inlined: Path) -> None:
    with pytest.raises(BuildError, match=r"no QKNormRope for a plugin .* --rope native"):
        build_engines(inlined, Options(rope="plugin", capabilities=("8.9",)))


def test_the_graph_says_what_its_sequence_is(inlined: Path) -> None:
    model = onnx.load(inlined / "denoiser.onnx", load_external_data=False)
    assert {each.key: each.value for each in model.metadata_props} == {"dim sequence": "text + tokens"}


def test_onnxruntime_and_the_checker(inlined: Path, inputs: Arrays, expected: list[np.ndarray]) -> None:
    onnx.checker.check_model(inlined / "denoiser.onnx", full_check=True)
    close(run(inlined / "denoiser.onnx", inputs), expected)


def test_openvino(
    inlined: Path,
    plain: Path,
    inputs: Arrays,
    expected: list[np.ndarray],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import openvino

    with (
        caplog.at_level(
            logging.WARNING
        ),  # convert_model leaves the root logger at ERROR, for every test after
        pytest.raises(openvino.frontend.OpConversionFailure, match="QKNormRope"),
    ):
        openvino.convert_model(plain / "denoiser.onnx")
    command(
        "ovc", inlined / "denoiser.onnx", "--output_model", tmp_path / "d.xml", "--compress_to_fp16=False"
    )
    compiled = openvino.compile_model(tmp_path / "d.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    close([*compiled(inputs).values()], expected)


@pytest.mark.parametrize("functions", [True, False])
@pytest.mark.parametrize("tool", ["onnxslim", "onnxsim"])
def test_simplifiers(
    tool: str,
    functions: bool,
    inlined: Path,
    plain: Path,
    inputs: Arrays,
    expected: list[np.ndarray],
    tmp_path: Path,
) -> None:
    root = plain if functions else inlined
    command(tool, root / "denoiser.onnx", tmp_path / "simple.onnx")
    close(run(tmp_path / "simple.onnx", inputs), expected)


def test_graphsurgeon(inlined: Path, inputs: Arrays, expected: list[np.ndarray], tmp_path: Path) -> None:
    import onnx_graphsurgeon as gs

    graph = gs.import_onnx(onnx.load(inlined / "denoiser.onnx"))
    assert [each.name for each in graph.inputs] == [*inputs]
    onnx.save(gs.export_onnx(graph.cleanup().toposort()), tmp_path / "same.onnx")
    close(run(tmp_path / "same.onnx", inputs), expected)


def test_polygraphy(plain: Path, inlined: Path, inputs: Arrays) -> None:
    """Without shapes every dim is 1, and sequence = text + tokens cannot be; with them it runs."""
    shapes = [f"{name}:[{','.join(map(str, value.shape))}]" for name, value in inputs.items()]
    for root in (plain, inlined):
        graph = root / "denoiser.onnx"
        assert "PASSED" in command("polygraphy", "run", graph, "--onnxrt", "--input-shapes", *shapes)
    command("polygraphy", "run", graph, "--onnxrt", fails=True)


def test_netron(inlined: Path) -> None:
    """Its server gives the page and the graph; the drawing itself is done by a browser."""
    import netron

    address = netron.start(str(inlined / "denoiser.onnx"), address=("127.0.0.1", 0), browse=False)
    try:
        place = f"http://{address[0]}:{address[1]}"
        assert b"netron" in urllib.request.urlopen(place, timeout=20).read().lower()
        served = urllib.request.urlopen(f"{place}/data/denoiser.onnx", timeout=20).read()
        assert served == (inlined / "denoiser.onnx").read_bytes()
    finally:
        netron.stop(address)
