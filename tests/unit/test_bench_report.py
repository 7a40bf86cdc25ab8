"""Results files: their schema, how they are written and shown, and what they say of the machine."""

import re
import xml.etree.ElementTree as ET
from base64 import b64decode
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from bench_runs import painter, result, roofline, scaling
from pydantic import BaseModel

from flux_trt.bench import cli, job, machine, schema
from flux_trt.bench.energy import Meter
from flux_trt.bench.errors import BenchError
from flux_trt.bench.job import PROMPTS
from flux_trt.bench.page import page, write_all
from flux_trt.bench.quality import checker, judge, psnr
from flux_trt.bench.scaling import SWEEPS, fit
from flux_trt.bench.schema import Run, load, save
from flux_trt.bench.watch import DeviceClock

ROOT = Path(__file__).parents[2]
CHECKER = ROOT / "examples" / "flux-nano" / "nano" / "checker.py"
TIMES = np.linspace(90, 110, 12)


def everything():
    ours = painter("flux_trt/onnxruntime", TIMES, psnr=90.0, score=0.9)
    return [result(ours, painter("diffusers", TIMES * 2, score=0.9)), roofline(), scaling()]


def records(model):
    """A pydantic model's fields and those of the models inside of it."""
    for name, field in model.model_fields.items():
        yield name
        for inner in re.findall(r"flux_trt\.bench\.schema\.(\w+)", repr(field.annotation)):
            yield from records(getattr(schema, inner))


@pytest.mark.parametrize("kind", ["run", "roofline", "scaling"])
def test_every_field_is_described(kind):
    text = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    fields = set(records(schema.KINDS[kind]))
    assert {"about", "hardware", "power_limit_w", "digest", "command", "date"} <= fields
    assert [name for name in sorted(fields) if f"`{name}`" not in text] == []


@pytest.mark.parametrize("found", everything(), ids=lambda found: found.kind)
def test_what_is_written_is_read_again(tmp_path, found):
    path = tmp_path / "found.json"
    save(path, found)
    assert load(path, type(found)) == found
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_another_kind_is_refused(tmp_path):
    save(tmp_path / "scaling.json", scaling())
    with pytest.raises(BenchError, match="is no run of flux-bench"):
        load(tmp_path / "scaling.json", Run)
    with pytest.raises(BenchError, match="cannot read"):
        load(tmp_path / "none.json", Run)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(BenchError, match="about"):
        load(tmp_path / "run.json", Run)


def test_every_model_is_strict_about_names():
    models = [
        each for each in vars(schema).values() if isinstance(each, type) and issubclass(each, BaseModel)
    ]
    assert all(each.model_config["extra"] == "forbid" for each in models if each is not BaseModel)


def test_the_page_needs_nothing_else(tmp_path):
    for found in everything():
        save(tmp_path / f"{found.kind}.json", found)
    write_all(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:)|url\(|<script|<link""", text)
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    assert len(pictures) == 6  # latency, quality, breakdown, steps, roofline, one curve
    for picture in pictures:
        assert ET.fromstring(b64decode(picture)).tag.endswith("svg")
    assert ET.fromstring(re.sub(r"<!doctype html>|<meta[^>]*>|<img[^>]*>", "", text)).tag == "html"
    for said in ("flux_trt/onnxruntime", "a CPU, 2 cores", "000000000000", "out of time", "exponent"):
        assert said in text
    tables = re.findall(r"(?:^\|.*\n)+", (tmp_path / "report.md").read_text(encoding="utf-8"), re.M)
    assert len(tables) == 8
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_noisy_run_says_so():
    noisy = result(painter("ours", TIMES)).model_copy(update={"noisy": True})
    assert '<p class="noisy">' in page([noisy])
    assert '<p class="noisy">' not in page([result(painter("ours", TIMES))])


def test_a_folder_without_results(tmp_path):
    with pytest.raises(BenchError, match="has no results"):
        write_all(tmp_path)


def test_no_place_of_the_machine_is_in_the_command():
    words = ["/opt/x/bin/flux-bench", "run", "/data/nano", "--out=/tmp/b", "--peer", "diffusers", "out/x"]
    assert machine.command(words) == "flux-bench run nano --out=b --peer diffusers out/x"
    assert machine.command(["benchmarks/rope.py", "--static"]) == "python benchmarks/rope.py --static"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("NVIDIA H100 80GB HBM3, 580.65.06, 700.00\n", ("NVIDIA H100 80GB HBM3", "580.65.06", 700.0)),
        ("NVIDIA T4, 570.1, [N/A]\n", ("NVIDIA T4", "570.1", None)),
        ("", (None, None, None)),
    ],
)
def test_what_nvidia_smi_tells(monkeypatch, said, expected):
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    assert tuple(machine.gpu().values()) == expected


class Nvml:
    """NVML's C interface, counting 5 J at each look."""

    total = 0

    def nvmlInit_v2(self):  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, device):  # noqa: N802
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device, out):  # noqa: N802
        self.total += 5000
        out._obj.value = self.total
        return 0


def test_energy_is_what_the_driver_counts():
    meter = Meter(Nvml())
    assert (meter.joules(), meter.joules()) == (5.0, 10.0)


def test_no_energy_without_a_counter():
    old = Nvml()
    old.nvmlDeviceGetTotalEnergyConsumption = lambda *_: 3  # NVML_ERROR_NOT_SUPPORTED
    assert Meter(old).joules() is None
    off = Nvml()
    off.nvmlInit_v2 = lambda: 9  # NVML_ERROR_DRIVER_NOT_LOADED
    assert Meter(off).joules() is None


def test_events_are_recorded_on_the_pipelines_stream():
    calls = []

    def call(function, *arguments):
        calls.append((function, *arguments))
        return {"cudaEventCreate": f"event {len(calls)}", "cudaEventElapsedTime": 1.5}.get(function)

    clock = DeviceClock(SimpleNamespace(call=call, stream=7))
    start, end = clock.mark(), clock.mark()
    assert clock.ms(start, end) == 1.5
    assert ("cudaEventRecord", start, 7) in calls
    assert calls[-2:] == [("cudaEventSynchronize", end), ("cudaEventElapsedTime", start, end)]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_power_is_fitted(power):
    exponent, r2 = fit([(x, 3 * x**power) for x in (256, 512, 1024, 4096)])
    assert exponent == pytest.approx(power, abs=1e-3)
    assert r2 == pytest.approx(1)


def test_two_points_fit_nothing():
    assert fit([(0, 1.0), (1, 1.0), (2, 2.0)]) is None


def test_psnr():
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    assert psnr(black, white)[0] == pytest.approx(0)
    assert psnr(black, black + np.uint8(1))[0] == pytest.approx(20 * np.log10(255))
    assert psnr(black, black)[0] == 150


def test_the_checker_judges_flux_nanos_pictures():
    from nano.picture import Jitter, draw
    from nano.scene import parse

    check = checker(CHECKER)
    jitter = Jitter.sample(np.random.default_rng(0))
    right = [np.stack([draw(parse(prompt), jitter)]) for prompt in PROMPTS]
    wrong = [*right[1:], right[0]]
    said = [[prompt] for prompt in PROMPTS]
    assert judge(right, said, None, check).score == 1.0
    assert judge(wrong, said, ("diffusers", right), check).score == 0.0
    assert judge(wrong, said, ("diffusers", right), None).psnr_db_median < 20
    with pytest.raises(BenchError, match="cannot judge these prompts"):
        judge(right[:1], [["an astronaut"]], None, check)
    with pytest.raises(BenchError, match="is no checker"):
        checker(ROOT / "tests" / "bench_runs.py")


def test_the_prompts_are_those_that_flux_nano_never_saw():
    from nano.scene import test_prompts as unseen

    lines = (ROOT / "benchmarks" / "flux-nano-prompts.txt").read_text(encoding="utf-8").splitlines()
    assert lines == unseen(256)


def test_the_command_names_what_there_is():
    """The names stand in cli.py as well, because that imports nothing large."""
    assert cli.PEERS == job.PEERS == get_args(job.PeerName)
    assert tuple(SWEEPS) == cli.OVER
