"""The arrows plugins <- runtime <- exporter, bench beside them, and what the runtime must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "transformers", "diffusers"}
ABOVE = {"flux_trt.exporter", "flux_trt.serving", "flux_trt.bench"}
UNPICKLING = {"pickle", "dill", "joblib", "shelve", "torch.load"}
SLOW = HEAVY | {"onnxruntime", "openvino", "numpy", "PIL", "pydantic", "rich", "tokenizers"}
SLOW |= {"fastapi", "starlette", "uvicorn", "prometheus_client", "ray", "pandas", "pyarrow"}


def loaded(code):
    """Top-level modules in `sys.modules` after running `code` in a process of its own."""
    report = "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    found = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\n{report}"], capture_output=True, text=True, check=True
    )
    return set(found.stderr.split())


def test_importing_the_runtime_loads_nothing_slow():
    assert not loaded("import flux_trt.runtime") & SLOW


@pytest.mark.parametrize(
    ("package", "words"),
    [("runtime", ["--help"]), ("serving", ["--help"]), ("bench", ["--help"]), ("bench", ["run", "--help"])],
)
def test_help_loads_nothing_slow(package, words):
    code = f"from flux_trt.{package}.cli import main\nmain({words!r}, standalone_mode=False)"
    assert not loaded(code) & SLOW


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_painting_loads_no_framework(tiny, backend):
    code = (
        "from flux_trt.runtime import Pipeline\n"
        f"with Pipeline.load({str(tiny)!r}, {backend!r}, 'cpu') as pipeline: pipeline.generate('a')"
    )
    found = loaded(code)
    assert backend in found
    assert not found & (HEAVY | {"exporter"})


def test_ray_is_imported_where_it_is_asked_for():
    """By its own room of the server, and in the runtime by two files, inside of functions."""
    rooms = {"serving/ray", "runtime"}
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("plugins", "runtime", "exporter", "serving")
        for path in (ROOT / folder).rglob("*.py")
        if any(name == "ray" or name.startswith("ray.") for name in imports(path))
    }
    assert {path.rpartition("/")[0] for path in found} == rooms
    assert {path for path in found if path.startswith("runtime/")} == {
        "runtime/cluster.py",
        "runtime/spread.py",
    }
    assert "ray" not in loaded(
        "import flux_trt.runtime.cluster, flux_trt.runtime.spread, flux_trt.serving.app"
    )


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    ("folder", "banned"),
    [
        ("plugins", {"flux_trt.runtime", *ABOVE, *UNPICKLING}),
        ("runtime", {*ABOVE, *HEAVY, *UNPICKLING}),
        ("serving", {*(ABOVE - {"flux_trt.serving"}), *HEAVY, *UNPICKLING}),
        ("exporter", {"flux_trt.bench", "flux_trt.serving", *UNPICKLING}),
    ],
)
def test_arrows(folder, banned):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if any(name == each or name.startswith(f"{each}.") for each in banned)
    ]
    assert not wrong
