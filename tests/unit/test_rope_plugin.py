"""The plugin without a GPU: the contract, and the real classes of TensorRT-RTX in a child process."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import pytest
from rope_case import draw, graph

from flux_trt.plugins.qk_norm_rope import plugin
from flux_trt.plugins.qk_norm_rope.contract import Attributes, check

CHILD = Path(__file__).parents[1] / "rope_plugin_child.py"
real = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is only there on x86-64 Linux"
)


def child(*arguments: object) -> dict:
    done = subprocess.run(
        [sys.executable, CHILD, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("inputs", "wrong"),
    [
        ([(1, 5, 288), (48,), (48,), (5, 24)], "inputs are qkv"),
        ([(5, 288), (48,), (48,), (5, 24), (5, 24)], "inputs are qkv"),
        ([(1, 5, 288), (40,), (40,), (5, 20), (5, 20)], "head dim 40 is not a multiple of 16 from 32 to 256"),
        ([(1, 5, 288), (16,), (16,), (5, 8), (5, 8)], "head dim 16 is not"),
        ([(1, 5, 2048), (512,), (512,), (5, 256), (5, 256)], "head dim 512 is not"),
        ([(1, 5, 176), (48,), (48,), (5, 24), (5, 24)], "176 channels are not a multiple of 16 that holds"),
        ([(1, 5, 200), (48,), (48,), (5, 24), (5, 24)], "200 channels are not"),
        ([(1, 5, 288), (48,), (64,), (5, 24), (5, 24)], r"k_scale is \[64\], not \[48\]"),
        ([(1, 5, 288), (48,), (48,), (6, 24), (5, 24)], r"cos is \[6, 24\], not \[5, 24\]"),
        ([(1, 5, 288), (48,), (48,), (5, 24), (5, 48)], r"sin is \[5, 48\], not \[5, 24\]"),
        ([(1, 5, 96), (1, 5, 112), (48,), (48,), (5, 24), (5, 24)], r"k is \[1, 5, 112\], not \[1, 5, 96\]"),
        ([(1, 5, 80), (1, 5, 80), (48,), (48,), (5, 24), (5, 24)], "80 channels .* that holds queries of"),
        ([(1, 5, 96), (1, 5, 96), (48,), (64,), (5, 24), (5, 24)], r"k_scale is \[64\], not \[48\]"),
        ([(1, 5, 96), (5, 96), (48,), (48,), (5, 24), (5, 24)], r"inputs are qkv .*k \[5, 96\]"),
    ],
)
def test_shapes_that_do_not_fit_are_told(inputs: list, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"^QKNormRope: .*{wrong}"):
        check(Attributes(2), inputs)


@pytest.mark.parametrize("tokens", [5, -1])
@pytest.mark.parametrize("channels", [192, 288, 400])
def test_shapes_that_fit(tokens: int, channels: int) -> None:
    check(Attributes(2), [(-1, tokens, channels), (48,), (48,), (tokens, 24), (-1, 24)])
    apart = (-1, tokens, channels)
    check(Attributes(2), [apart, apart, (48,), (48,), (tokens, 24), (-1, 24)])


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"num_heads": 0}, "num_heads 0"),
        ({"num_heads": 1, "epsilon": float("nan")}, "epsilon nan"),
        ({"num_heads": 1, "epsilon": -1.0}, "epsilon -1"),
        ({"num_heads": 1, "fp8_scales": (1.0,)}, "fp8_scales"),
        ({"num_heads": 1, "fp8_scales": (1.0, 0.0)}, "fp8_scales"),
    ],
)
def test_attributes_that_mean_nothing(values: dict, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Attributes(**values)


def test_the_shape_rule() -> None:
    """With stand-ins: TensorRT makes dimension expressions only while it builds."""
    node = plugin.QKNormRope(Attributes(24))
    node.trt = SimpleNamespace(DimsExprs=lambda rank: [None] * rank)  # type: ignore[assignment]
    builder = SimpleNamespace(constant=lambda value: f"constant {value}")
    inputs = [["B", "L", "C"], ["E"], ["E"], ["L", "E / 2"], ["L", "E / 2"]]
    for given in (inputs, [inputs[0], *inputs]):
        assert node.get_output_shapes(given, [], builder) == [["B", "constant 24", "L", "E"]] * 2


@pytest.fixture(scope="module")
def described() -> dict:
    return child("describe")


@real
def test_it_is_registered_once(described: dict) -> None:
    assert described["registered"] == 1
    assert described["creator"] == ["QKNormRope", "1", ""]
    kinds = {"num_heads": "INT32", "epsilon": "FLOAT32", "fp8_scales": "FLOAT32"}
    assert described["creator_fields"] == kinds


@real
def test_a_plan_finds_its_attributes_again(described: dict) -> None:
    plain, fp8 = described["made"]
    assert plain["attributes"] == {"num_heads": 24, "epsilon": pytest.approx(1e-6), "fp8_scales": None}
    assert fp8["attributes"] == {"num_heads": 2, "epsilon": pytest.approx(1e-5), "fp8_scales": [0.5, 0.25]}
    assert plain["fields"] == ["num_heads", "epsilon"]
    assert fp8["fields"] == ["num_heads", "epsilon", "fp8_scales"]


@real
def test_timings_are_shared_by_equal_nodes_only(described: dict) -> None:
    plain, fp8 = ({*made["ids"]} for made in described["made"])
    assert len(plain) == len(fp8) == 1
    assert plain != fp8


@real
def test_one_object_is_core_build_and_runtime(described: dict) -> None:
    assert described["core"] == [[True] * 3, "QKNormRope", "1", "", 2]
    assert described["interfaces"] == [True] * 4
    assert described["attached_is_new"]
    assert described["workspace"] == 0


@real
def test_types_and_layouts(described: dict) -> None:
    assert described["types"] == [["BF16", "BF16"], ["FP8", "FP8"]]
    taken = {name for name, yes in described["accepted"].items() if yes}
    assert taken == {
        "plain HALF HALF",
        "plain BF16 BF16",
        "plain FLOAT FLOAT",
        "fp8 HALF FP8",
        "fp8 BF16 FP8",
        *(f"apart {each}" for each in ("HALF HALF", "BF16 BF16", "FLOAT FLOAT")),
    }
    assert not described["other_layout"]


@real
def test_shapes_and_attributes_are_checked(described: dict) -> None:
    assert described["fits"] == described["open"] == ""
    assert described["narrow"].startswith("QKNormRope: 176 channels")
    assert described["narrow_at_run"] == described["narrow"]
    assert "num_heads is missing" in described["no_heads"]
    assert "there is no attribute heads" in described["unknown"]


def of_ours(methods: dict[str, list[str]]) -> dict[str, int]:
    """How many arguments our methods of these names take."""
    found = {name: getattr(plugin.QKNormRope, name, None) for name in methods}
    return {name: len(inspect.signature(each).parameters) - 1 for name, each in found.items() if each}


@real
def test_the_methods_are_those_that_tensorrt_rtx_calls(described: dict) -> None:
    theirs = described["signatures"]
    ours = of_ours(theirs)
    assert ours == {name: len(theirs[name]) for name in ours}
    assert set(theirs) - set(ours) == {"destroy", "get_valid_tactics", "set_tactic"}, "these have defaults"


def test_the_methods_are_those_that_tensorrt_calls() -> None:
    """By the public stubs, as TensorRT's own libraries cannot be installed everywhere."""
    spec = importlib.util.find_spec("tensorrt_stubs")
    if spec is None or spec.origin is None:
        pytest.skip("tensorrt-stubs is not installed; pip install --no-deps tensorrt-stubs==10.13.0.35.1")
    text = (Path(spec.origin).parents[1] / "tensorrt_bindings" / "tensorrt.pyi").read_text(encoding="utf-8")
    theirs = {}
    for name in ("IPluginV3", "IPluginV3OneBuild", "IPluginV3OneRuntime"):
        body = re.search(rf"^class {name}\b.*?(?=^class |\Z)", text, re.MULTILINE | re.DOTALL)
        assert body
        for method, told in re.findall(
            r"^    def ([a-z]\w+)\(self[^,)]*,? ?(.*)\) -> ", body[0], re.MULTILINE
        ):
            theirs[method] = re.findall(r"(\w+): ", told)
    ours = of_ours(theirs)
    assert ours == {name: len(theirs[name]) for name in ours}
    assert {"clone", "enqueue", "get_output_shapes", "on_shape_change"} <= set(ours)
    for name in ("plugin_name", "plugin_version", "plugin_namespace", "num_outputs", "timing_cache_id"):
        assert re.search(rf"^    {name}: ", text, re.MULTILINE), name
    for name in ("get_creator", "register_creator"):
        assert re.search(rf"^    def {name}\(", text, re.MULTILINE), name


@real
@pytest.mark.parametrize("apart", [False, True])
def test_tensorrt_rtx_takes_the_plugin_or_native_layers(tmp_path: Path, apart: bool) -> None:
    """The same file: the override hands our creator the node; without it the function becomes layers."""
    path = tmp_path / "rope.onnx"
    onnx.save(graph(draw(np.float16, 2, 5, 3, 64, extra=0 if apart else 64, apart=apart)), path)
    created = child("parse", path, "plugin")["created"]
    assert created == {"num_heads": 3, "epsilon": pytest.approx(1e-6), "fp8_scales": None}
    native = child("parse", path, "native")
    assert native["parsed"]
    assert native["layers"].count("ROTARY_EMBEDDING") == 2
    assert not [layer for layer in native["layers"] if "PLUGIN" in layer]


@real
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_tensorrt_rtx_builds_the_native_form_for_every_target(
    tmp_path: Path, dtype: type, apart: bool
) -> None:
    path = tmp_path / "rope.onnx"
    onnx.save(graph(draw(dtype, 2, 5, 3, 64, extra=0 if apart else 64, apart=apart)), path)
    built = child("build", path)
    assert {"SM80", "SM86", "SM89", "SM120"} <= set(built["targets"])
    assert built["bytes"] > 0
