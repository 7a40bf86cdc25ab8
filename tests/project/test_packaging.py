"""What is installed: five packages, four commands, and no PyTorch for those who only paint."""

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAIN = ("plugins", "runtime", "exporter", "serving")
FOLDERS = {name: name for name in PLAIN} | {"bench": "benchmarks/bench"}
SHIPPED = ("plugins", "runtime", "exporter", "serving", "benchmarks", "tests")
EXPORT_ONLY = {
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "onnx",
    "onnx-ir",
    "onnxscript",
}


@pytest.fixture(scope="module")
def config():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's file names and metadata; it is built from a copy, so that no build/ is left behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SHIPPED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--wheel-dir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    return [name for name in names if not name.startswith(info)], metadata, entry_points


def installed(path):
    """Where a file or folder of ours lies in the wheel."""
    inside = path.relative_to(ROOT).as_posix()
    for name, folder in FOLDERS.items():
        if inside == folder or inside.startswith(f"{folder}/"):
            return f"flux_trt/{name}{inside.removeprefix(folder)}"
    raise AssertionError(f"{inside} belongs to no package")


def required(lines):
    """Names of the requirements, as an index spells them."""
    names = (re.match(r"[\w.-]+", line.strip()) for line in lines)
    return {found[0].lower().replace("_", "-") for found in names if found}


def test_packages_are_the_folders(config):
    there = {
        installed(path.parent).replace("/", ".")
        for folder in FOLDERS.values()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(config["options"]["packages"].split()) == there
    places = dict(
        re.split(r"\s*=\s*", line) for line in config["options"]["package_dir"].strip().splitlines()
    )
    assert places == {f"flux_trt.{name}": folder for name, folder in FOLDERS.items()}


def test_the_wheel_holds_the_five_packages_and_nothing_else(wheel, config):
    names, _, _ = wheel
    data = {
        installed(path)
        for package, patterns in config["options.package_data"].items()
        for pattern in patterns.split()
        for path in (ROOT / package.removeprefix("flux_trt.").replace(".", "/")).glob(pattern)
    }
    assert data
    expected = {installed(path) for folder in FOLDERS.values() for path in (ROOT / folder).rglob("*.py")}
    assert set(names) == expected | data


def test_painting_needs_no_framework(wheel, config):
    _, metadata, _ = wheel
    always = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert required(always) == required(config["options"]["install_requires"].strip().splitlines())
    assert not required(always) & EXPORT_ONLY
    extras = {"bench", "cpu", "openvino", "gpu", "tensorrt", "tensorrt-rtx", "control"}
    extras |= {"gguf", "export", "serve", "ray", "docs", "dev"}
    assert set(metadata.get_all("Provides-Extra")) == extras


def test_the_wheel_brings_the_commands(wheel):
    _, _, entry_points = wheel
    assert "flux-bench = flux_trt.bench.cli:main" in entry_points
    assert "flux-export = flux_trt.exporter.cli:main" in entry_points
    assert "flux-run = flux_trt.runtime.cli:main" in entry_points
    assert "flux-serve = flux_trt.serving.cli:main" in entry_points


def test_every_requirement_is_pinned(config):
    lines = config["options"]["install_requires"].strip().splitlines()
    for name, extra in config["options.extras_require"].items():
        lines += extra.strip().splitlines() if name not in ("gpu", "tensorrt") else []
    pinned = required((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert required(lines) <= pinned
