"""flux-bench on real bundles: what it measures and what it refuses; how long that took is no verdict."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from flux_trt.bench import roofline, run
from flux_trt.bench.cli import main
from flux_trt.bench.job import as_pictures
from flux_trt.bench.schema import Roofline, Run, Scaling, Series, load, save
from flux_trt.runtime import Pipeline
from flux_trt.runtime.bundle import manifest

OURS = "flux_trt/onnxruntime"
STAGES = {"clip", "t5", "conditioner", "denoiser", "vae_decoder"}


def called(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def measured(bundle, checkpoint, tmp_path_factory):
    """A run on flux-nano beside diffusers: two rounds of four steps."""
    out = tmp_path_factory.mktemp("bench")
    words = ["run", bundle("flux-nano"), "--checkpoint", checkpoint("flux-nano"), "--peer", "diffusers"]
    words += ["--device", "cpu", "--steps", 4, "--runs", 2, "--warmup", 1, "--starts", 1, "--allow-noise"]
    words += [
        "--patience",
        0,
        "--checker",
        checkpoint("flux-nano") / "nano" / "checker.py",
        "--scored",
        3,
        "--out",
        out,
    ]
    done = called(*words)
    assert done.exit_code == 0, done.output
    return out


def test_a_run_has_every_figure(measured, bundle):
    found = load(measured / "run.json", Run)
    (case,) = found.cases
    ours, theirs = case.painters
    contract = manifest.read(bundle("flux-nano"))
    default = contract.defaults
    assert (case.width, case.height, case.guidance) == (
        default.width,
        default.height,
        contract.guidance.default,
    )
    assert (case.steps, case.batch, case.text_tokens) == (4, 1, 32)
    assert [ours.name, theirs.name] == [OURS, "diffusers"]
    assert ours.picture_ms.n == theirs.picture_ms.n == found.runs == 2
    assert found.retaken == 0
    assert set(ours.stages_ms) == STAGES
    assert {name: series.n for name, series in ours.stages_ms.items()} == dict.fromkeys(STAGES, 2) | {
        "denoiser": 8
    }
    assert ours.step_ms == ours.stages_ms["denoiser"]
    assert ours.between_steps_ms.n == 2 * 3
    assert ours.outside_ms.n == 2
    assert ours.outside_ms.min > 3 * ours.between_steps_ms.min > 0
    assert theirs.stages_ms is theirs.step_ms is theirs.outside_ms is None
    for each in case.painters:
        assert each.pictures_per_second == pytest.approx(1e3 / each.picture_ms.p50, rel=1e-3)
        assert each.start.cold_s.p50 > each.start.load_s.p50 > each.start.convert_s.p50 == 0
        assert each.start.peak_rss_mb > each.start.bytes_loaded / 1e6 > 10
        assert each.start.peak_device_mb is each.joules_per_picture is None
        assert each.quality.pictures == 3
        assert 0 <= each.quality.score <= 1
    rounds = [b / a for a, b in zip(ours.picture_ms.samples, theirs.picture_ms.samples, strict=True)]
    assert ours.faster.baseline == "diffusers"
    assert ours.faster.median == pytest.approx(np.median(rounds), rel=1e-3)
    assert theirs.faster is None
    assert ours.quality.psnr_db_min > 40, "the same pictures as diffusers'"
    assert theirs.quality.psnr_db_median is None
    assert found.about.bundle.name == bundle("flux-nano").name
    assert found.about.hardware.gpu is None
    assert found.about.command
    assert str(measured) not in found.about.command
    page = (measured / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml;base64,") == 4
    assert str(bundle("flux-nano").parent) not in page


def test_a_run_is_no_regression_of_itself_and_a_slowed_copy_is(measured, tmp_path):
    whole = load(measured / "run.json", Run)
    assert called("compare", measured / "run.json", measured / "run.json", "--bound", 1.5).exit_code == 0
    (case,) = whole.cases
    ours = case.painters[0]
    factor = 2 * max(ours.step_ms.samples) / ours.step_ms.min  # so slow that no noise hides it
    slowed = {"step_ms": Series.of([factor * ms for ms in ours.step_ms.samples])}
    painters = [ours.model_copy(update=slowed), *case.painters[1:]]
    slow = whole.model_copy(update={"cases": [case.model_copy(update={"painters": painters})]})
    save(tmp_path / "slow.json", slow)
    done = called("compare", measured / "run.json", tmp_path / "slow.json", "--bound", 1.5)
    assert done.exit_code == 1
    assert done.output.count("REGRESSION") == 1


def test_painters_get_what_users_get(tiny):
    """The pictures of the worker process are those of the pipeline."""
    from flux_trt.bench.case import job
    from flux_trt.bench.crew import Worker
    from flux_trt.runtime.bundle.bundle import Bundle

    asked = job(Bundle.open(tiny), (64, 32), 3, 2, None, "cpu", None)
    with Worker(OURS, asked) as worker:
        assert worker.load()["device"] == "cpu"
        painted = worker.paint(["red", "blue circle"], [4, 9])
    with Pipeline.load(tiny, "onnxruntime", device="cpu") as pipeline:
        images = pipeline.generate(["red", "blue circle"], size=(64, 32), steps=3, seed=[4, 9], batch=2)
    assert np.array_equal(painted.pictures, as_pictures(images))
    assert painted.pictures.std() > 1
    assert painted.peak_rss_mb > 10


@pytest.mark.parametrize("name", [OURS, "diffusers"])
def test_threads_are_the_painter_s(bundle, checkpoint, name):
    """Its process has more of them when more are asked for."""
    from flux_trt.bench.case import job
    from flux_trt.bench.crew import Worker
    from flux_trt.runtime.bundle.bundle import Bundle

    nano, tasks = Bundle.open(bundle("flux-nano")), []
    for threads in (1, 4):
        asked = job(nano, (64, 64), 1, 1, None, "cpu", str(checkpoint("flux-nano")), threads)
        with Worker(name, asked) as worker:
            worker.load()
            worker.paint(["a red circle"], [0])
            tasks.append(len(list(Path(f"/proc/{worker._child.pid}/task").iterdir())))
    assert tasks[1] >= tasks[0] + 3


CONVERTED = """
import os, torch
import openvino
from flux_trt.bench.peers.{peer} import convert
compiled, compile_model = [], openvino.Core.compile_model
def kept(*given):
    compiled.append(compile_model(*given))
    return compiled[-1]
openvino.Core.compile_model = kept
torch.set_num_threads(1)
module = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(4))).eval()
run = convert(module, [torch.zeros(64, 512)], "net", threads={threads})
run(torch.ones(64, 512))
told = [each.get_property("INFERENCE_NUM_THREADS") for each in compiled]
print(*told or [len(os.listdir("/proc/self/task"))])
"""
"""OpenVINO's threads come when there is something to do for them, so it is asked how many they may be."""


@pytest.mark.parametrize("peer", ["exported", "openvino"])
def test_threads_are_a_converted_peer_s(peer):
    tasks = []
    for threads in (1, 2):
        script = CONVERTED.format(peer=peer, threads=threads)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        tasks.append(int(done.stdout.split()[-1]))
    assert tasks[1] > tasks[0]


def test_a_run_says_its_threads(quick, tmp_path):
    assert called(*quick, "--allow-noise", "--threads", 1).exit_code == 0
    assert load(tmp_path / "out" / "run.json", Run).cases[0].threads == 1
    assert ", 1 threads" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


@pytest.fixture
def quick(tiny, tmp_path):
    """The words of the quickest run there is."""
    return [
        "run",
        tiny,
        "--device",
        "cpu",
        "--runs",
        2,
        "--warmup",
        0,
        "--starts",
        0,
        "--patience",
        0,
        "--out",
        tmp_path / "out",
    ]


def test_a_noisy_run_is_refused_and_nothing_is_written(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SPREAD_LIMIT", -1.0)
    done = called(*quick)
    assert done.exit_code == 1
    assert done.output.startswith("Error: whole pictures of flux_trt/onnxruntime at ")
    assert done.output.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert called(*quick, "--allow-noise").exit_code == 0
    assert load(tmp_path / "out" / "run.json", Run).noisy


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["--backend", "abacus"], "no backend is called 'abacus'", 1),
        (["--peer", "diffusers"], "--checkpoint", 1),
        (["--peer", "diffusers", "--checkpoint", "{empty}"], "diffusers cannot load", 1),
        (["--sizes", "64x65"], "is not possible", 1),
        (["--baseline", "openvino"], "'openvino' is not one of", 2),
        (["--prompts", "{blank}"], "has no prompt", 1),
        (["--sizes", "64"], "WIDTHxHEIGHT", 2),
    ],
)
def test_what_cannot_be_measured(quick, tmp_path, words, said, code):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").write_text("\n \n")
    places = {name: tmp_path / name for name in ("empty", "blank")}
    done = called(*quick, "--allow-noise", *(word.format(**places) for word in words))
    assert done.exit_code == code
    assert said in done.output
    assert not (tmp_path / "out").exists()


def test_a_worker_that_faults_or_dies_says_why(tiny):
    from flux_trt.bench.case import job
    from flux_trt.bench.crew import Worker
    from flux_trt.bench.errors import BenchError
    from flux_trt.runtime.bundle.bundle import Bundle

    asked = job(Bundle.open(tiny), (64, 32), 1, 1, None, "cpu", None)
    with (
        Worker(OURS, asked) as worker,
        pytest.raises(BenchError, match=r"nothing is loaded"),
    ):
        worker.paint(["a"], [0])
    with (
        Worker(OURS, asked) as worker,
        pytest.raises(BenchError, match=r"exit code 1: .*has no attribute 'fly'"),
    ):
        worker._ask({"do": "fly"})


def test_a_roofline(bundle, tmp_path, monkeypatch):
    """With ceilings of next to no time: what matters here is that every stage has its place."""
    monkeypatch.setattr(
        roofline, "ceilings", lambda device: ceilings.ceilings(device, seconds=0.01, side=128, copied=1 << 20)
    )
    from flux_trt.bench import ceilings

    words = ["roofline", bundle("flux-nano"), "--device", "cpu", "--steps", 1, "--runs", 1, "--warmup", 0]
    done = called(*words, "--allow-noise", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    found = load(tmp_path / "roofline.json", Roofline)
    assert {each.name for each in found.stages} == STAGES
    assert {"fp32", "bf16"} <= set(found.ceilings.matrix_gflops)
    for each in found.stages:
        least = max(each.compute_ms, each.memory_ms)
        assert each.fraction == pytest.approx(least / each.time_ms, rel=1e-2)
        assert each.count.matrix_flops > each.count.other_flops > 0
    monkeypatch.setattr(roofline, "PASSABLE", 0.0)
    refused = called(*words, "--out", tmp_path / "none")
    assert refused.exit_code == 1
    assert "matrix rate" in refused.output
    assert not (tmp_path / "none").exists()


def test_scaling_goes_as_far_as_it_can(bundle, tmp_path, monkeypatch):
    from flux_trt.bench import scaling

    sweeps = {"tokens": (16, 32, 64), "references": (0, 1, 2), "steps": (1, 2, 3), "batch": (1, 2, 10**6)}
    monkeypatch.setattr(scaling, "SWEEPS", sweeps)
    monkeypatch.setattr(scaling, "BASE", scaling.BASE | {"tokens": 16})
    words = ["scaling", bundle("flux-nano"), "--device", "cpu", "--over", ",".join(sweeps), "--seconds", 1e9]
    done = called(*words, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    curves = {curve.over: curve for curve in load(tmp_path / "scaling.json", Scaling).curves}
    for name in ("tokens", "references", "steps"):
        assert [point.x for point in curves[name].points] == list(sweeps[name])
        assert curves[name].stopped is None
        assert curves[name].exponent is not None
    assert [point.x for point in curves["batch"].points] == [1, 2]
    assert "GB" in curves["batch"].stopped
    assert curves["batch"].exponent is None


@pytest.mark.slow
def test_every_peer_paints_what_diffusers_paints(bundle, checkpoint, tmp_path):
    pytest.importorskip("openvino")
    words = ["run", bundle("flux-nano"), "--checkpoint", checkpoint("flux-nano"), "--out", tmp_path]
    words += [
        part for peer in ("diffusers", "compile", "onnx-export", "openvino") for part in ("--peer", peer)
    ]
    words += ["--device", "cpu", "--steps", 4, "--runs", 2, "--warmup", 1, "--starts", 0, "--allow-noise"]
    words += ["--patience", 0]
    done = called(*words)
    assert done.exit_code == 0, done.output
    (case,) = load(tmp_path / "run.json", Run).cases
    found = {each.name: each.quality.psnr_db_min for each in case.painters}
    assert found.pop("diffusers") is None
    # OpenVINO computes in bfloat16 where the CPU has it.
    least = dict.fromkeys(found, 40.0) | {"openvino": 20.0}
    assert {name for name in found if found[name] < least[name]} == set()
