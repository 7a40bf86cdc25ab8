"""How many threads a CPU backend computes on."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from simulator_cuda import CudaSimulator
from simulator_ort import OrtSimulator

from flux_trt.runtime import Pipeline
from flux_trt.runtime.backends import connect as connecting
from flux_trt.runtime.backends import cpus, ort
from flux_trt.runtime.cli import main
from flux_trt.runtime.errors import BackendError

ALL = len(os.sched_getaffinity(0))
MANY = set(range(64))


def group(tmp_path, lines, files):
    (tmp_path / "cgroup").write_text("".join(f"{line}\n" for line in lines))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return cpus.allowed(tmp_path / "cgroup", tmp_path)


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ([], {}, 64),
        (["0::/a/b"], {"a/b/cpu.max": "300000 100000\n"}, 3),
        (["0::/a/b"], {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n"}, 3),
        (["0::/a/b"], {"a/b/cpu.max": "20000 100000\n"}, 1),
        (["0::/elsewhere"], {"cpu.max": "400000 100000\n"}, 4),
        (["0::/a"], {"a/cpu.max": "nonsense\n"}, 64),
        (
            ["4:memory:/m", "3:cpu,cpuacct:/c"],
            {"cpu,cpuacct/c/cpu.cfs_quota_us": "150000\n", "cpu,cpuacct/c/cpu.cfs_period_us": "100000\n"},
            2,
        ),
        (["3:cpu:/c"], {"cpu/c/cpu.cfs_quota_us": "-1\n", "cpu/c/cpu.cfs_period_us": "100000\n"}, 64),
        (["3:cpuset:/c"], {"cpuset/cpu.cfs_quota_us": "1\n"}, 64),
    ],
)
def test_the_quota_of_a_container(tmp_path, monkeypatch, lines, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: MANY)
    assert group(tmp_path, lines, files) == expected


def test_the_default_is_the_library_s_where_all_cpus_may_be_used(monkeypatch):
    monkeypatch.setattr(cpus, "allowed", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert cpus.threads_of(None) is None
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cpus.threads_of(None) == 8
    assert cpus.threads_of(np.int64(3)) == 3


@pytest.mark.parametrize("asked", [0, -1, 1.5, "2", True])
def test_what_is_no_number_of_threads(tiny, asked):
    with pytest.raises(BackendError, match="is not possible; give a whole number from 1 on"):
        Pipeline.load(tiny, "onnxruntime", "cpu", threads=asked)


COUNT = """
import os, sys
from flux_trt.runtime import Pipeline
with Pipeline.load(sys.argv[1], sys.argv[2], "cpu", threads=int(sys.argv[3]) or None) as pipeline:
    pipeline.generate("a red circle", size=(64, 64))
    print(len(os.listdir("/proc/self/task")))
"""


def tasks(bundle, backend, threads, *before):
    command = [*before, sys.executable, "-c", COUNT, str(bundle), backend, str(threads)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_onnxruntime_has_as_many_threads_as_asked_for(tiny):
    """Each of the five stages has a pool of its own, of which the caller is one."""
    one, three = (tasks(tiny, "onnxruntime", threads) for threads in (1, 3))
    assert three - one == 5 * 2


@pytest.mark.skipif(not shutil.which("taskset") or ALL < 2, reason="needs taskset and two CPUs")
def test_the_cpus_that_a_process_may_use_are_the_default(tiny):
    alone = "taskset", "-c", str(min(os.sched_getaffinity(0)))
    default, one, two = (tasks(tiny, "onnxruntime", threads, *alone) for threads in (0, 1, 2))
    assert default == one == two - 5


def test_openvino_is_told():
    from flux_trt.runtime.backends.openvino import SHAPES, OpenVino

    assert OpenVino("cpu", threads=3)._settings == {"INFERENCE_NUM_THREADS": 3}
    assert OpenVino("cpu")._settings == {}
    assert SHAPES == 64


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_openvino_and_onnxruntime_compute_on_as_many(tiny, backend):
    images = []
    for threads in (1, 2, None):
        with Pipeline.load(tiny, backend, "cpu", threads=threads) as pipeline:
            images.append(np.asarray(pipeline.generate("a red circle", size=(64, 64))[0]).astype(int))
    assert max(np.abs(image - images[0]).max() for image in images) <= 1


def test_openvino_compiles_with_the_threads_and_the_bound(tiny):
    from flux_trt.runtime.backends.openvino import OpenVino
    from flux_trt.runtime.bundle import manifest

    stage = manifest.read(tiny).stages["denoiser"]
    compiled = OpenVino("cpu", threads=1).compile(tiny / "denoiser.onnx", "denoiser", stage)
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_threads_say_nothing_on_a_gpu(tiny, tmp_path, monkeypatch):
    for name in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(
            BackendError, match="works on a GPU, where threads say nothing; leave --threads out"
        ):
            Pipeline.load(tiny, name, threads=2)
    cuda = CudaSimulator()
    plain = ort.OnnxRuntime

    def on_a_gpu(device, threads=None):
        return plain(device, OrtSimulator(cuda), cuda, threads)

    monkeypatch.setattr(ort, "OnnxRuntime", on_a_gpu)
    with pytest.raises(BackendError, match="onnxruntime works on a GPU"):
        connecting.connect("auto", "cuda", threads=2)
    assert connecting.connect("auto", "cuda").gpu
    assert connecting.connect("onnxruntime", "cpu", threads=2).gpu is None


def test_threads_of_a_command(tiny, tmp_path):
    asked = ["generate", str(tiny), "a", "-o", str(tmp_path / "a.png")]
    assert CliRunner().invoke(main, [*asked, "--threads", "1"]).exit_code == 0
    assert CliRunner().invoke(main, [*asked, "--threads", "0"]).exit_code == 2
    found = CliRunner().invoke(main, [*asked, "--threads", "1", "--backend", "tensorrt-rtx"])
    assert "leave --threads out" in found.stderr


INFO = "processor\t: {}\nflags\t\t: fpu {}\n\n"


def test_what_the_cpus_can_do(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text(INFO.format(0, "avx2 avx512f amx_bf16") + INFO.format(1, "amx_bf16 avx2 avx_vnni"))
    assert cpus.features(info) == ("avx2", "amx_bf16"), "what all have"
    info.write_text("processor\t: 0\nFeatures\t: fp asimd\n")  # of ARM
    assert cpus.features(info) is None
    assert cpus.features(tmp_path / "none") is None
