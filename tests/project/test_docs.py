"""The pages: their links lead somewhere, their commands exist, their numbers are those of the results."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import pytest
from bench_runs import painter, result, roofline, scaling
from PIL import Image
from pydantic import BaseModel

from flux_trt.bench.schema import Ratio, save
from flux_trt.runtime.bundle import manifest

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "examples").glob("*/README.md")),
        *sorted((ROOT / "plugins").glob("**/README.md")),
    )
    if page.is_file()
]
COMMANDS = {
    "flux-bench": "flux_trt.bench.cli",
    "flux-export": "flux_trt.exporter.cli",
    "flux-run": "flux_trt.runtime.cli",
}
TABLE = ROOT / "benchmarks" / "table.py"


def named(path):
    return str(path.relative_to(ROOT))


def links(text):
    """Targets of links and pictures outside of code."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)
    yield from re.findall(r'<img[^>]+src="([^"]+)"', text)


def anchors(text):
    """What a heading may be linked by, as GitHub makes it."""
    for heading in re.findall(r"^#+ +(.+)$", text, re.M):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def shown(text):
    """Command lines of the fenced blocks, continuations joined."""
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ ")


def command_lines():
    for page in PAGES:
        for line in shown(page.read_text(encoding="utf-8")):
            last = re.sub(r"^([A-Z_]+=\S* )+", "", line.rpartition(" | ")[2])
            words = shlex.split(last, comments=True)
            if words and words[0] in COMMANDS:
                yield pytest.param(words, id=f"{named(page)}: {' '.join(words)[:60]}")


def group(name):
    return importlib.import_module(COMMANDS[name]).main


def leads(page, target):
    """Whether a relative link, with or without an anchor, ends inside of the project."""
    name, _, anchor = target.partition("#")
    place = (page.parent / name).resolve() if name else page
    if not place.exists() or not place.is_relative_to(ROOT):
        return False
    return not anchor or anchor in set(anchors(place.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    broken = [
        target for target in links(text) if not re.match(r"[a-z]+:", target) and not leads(page, target)
    ]
    assert not broken


@pytest.mark.parametrize("words", list(command_lines()))
def test_command_lines_parse(words):
    main = group(words[0])
    try:
        if words[1].startswith("-"):
            main.make_context(words[0], words[1:])
        else:
            main.commands[words[1]].make_context(words[1], words[2:])
    except click.exceptions.Exit as shown_and_done:
        assert shown_and_done.exit_code == 0


@pytest.mark.parametrize("page", ["README.md", "docs/tasks.md"])
def test_the_python_in_the_pages_runs(bundle, tmp_path, monkeypatch, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        names = {}
        exec(block.replace("out/flux-nano", str(bundle("flux-nano"))), names)
        pictures = [each for each in names.values() if isinstance(each, Image.Image)]
        assert pictures
        assert all(each.size == (64, 64) for each in pictures)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_in_the_text_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for span in re.findall(r"`((?:flux-bench|flux-export|flux-run)[^`]*)`", text):
        name, *words = span.split()
        verb = next((word for word in words if word in group(name).commands), None)
        command = group(name).commands[verb] if verb else group(name)
        known = {option for each in command.params for option in each.opts} | {"--help", "-h"}
        assert not words or verb or words[0].startswith("-"), span
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, span


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_make_targets_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    used = {word for span in re.findall(r"`make ([a-z -]+)", text) for word in span.split()}
    used |= {
        word for line in shown(text) if line.startswith("make ") for word in line.split("#")[0].split()[1:]
    }
    assert used <= targets


def test_files_in_the_code_map_exist():
    """Names in backquotes that look like our files are ours."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    spans = re.findall(r"`((?:exporter|runtime|plugins|benchmarks|tests|docs|examples)/[\w./-]*)`", text)
    assert [span for span in spans if not (ROOT / span).exists()] == []


def records(model):
    """A pydantic model's fields and those of the models inside of it."""
    for name, field in model.model_fields.items():
        yield name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from records(inner)


def test_every_field_of_the_manifest_is_described():
    text = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    fields = set(records(manifest.Manifest))
    assert {"schema_version", "shift", "sha256", "dims"} <= fields
    assert [name for name in sorted(fields) if not re.search(rf"`([\w*]+\.)*{name}[`.]", text)] == []


def test_every_stage_is_described(bundle):
    text = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    for name, stage in manifest.read(bundle("flux-nano")).stages.items():
        for tensor in (*stage.inputs, *stage.outputs):
            varying = [dim for dim in tensor.dims if isinstance(dim, str)]
            assert f"`{name}`" in text
            assert re.search(rf"`{tensor.name}`[^|]*\| \[{', '.join(varying)}[,\]]", text), (name, tensor)


def table(*arguments):
    return subprocess.run([sys.executable, TABLE, *arguments], capture_output=True, text=True, check=False)


def test_the_numbers_are_those_of_the_results():
    found = table("--check")
    assert found.returncode == 0, found.stderr


APART = {"largest_difference": 0.13, "psnr_db": 51.2}
FIGURES = {"median": 2.0, "min": 1.0, "max": 3.0}
PAIR = {"flux_run": FIGURES, "diffusers": FIGURES, "diffusers_over_flux_run": FIGURES}
SHARES = {"colour": 0.987, "shape": 0.5, "place": 1.0, "background": 1.0, "all_right": 0.4, "pictures": 256}
CHANGED = {"made": 0.9, "kept": 0.94, "whole": 0.8, "rest_psnr": 33.3}
RESULTS = {
    "full_size.json": {
        "parameters": 11.9e9,
        "graph_seconds": {"conditioner": 8.0, "denoiser": 40.0},
        "graph_seconds_total": 48.0,
        "wall_seconds": 70.0,
        "peak_rss_gb": 0.75,
        "checkpoint_gb": 23.8,
        "weights_linked": True,
        "bundle_own_mb_on_disk": 1.5,
        "targets": {"graph_seconds_total": 90, "peak_rss_gb": 1.5},
    },
    "cold_start.json": {
        "help_seconds": FIGURES,
        "first_picture_seconds": PAIR,
        "peak_rss_mb": PAIR,
        "pictures": {"largest_difference": 1, "share_within_1": 1.0},
        "settings": {"size": [64, 64], "steps": 12, "precision": "fp32", "rounds": 7},
        "targets": {"help_seconds": 0.3},
    },
    "flux_nano_score.json": {
        **dict.fromkeys(("text_to_image", "one_object", "two_objects"), SHARES),
        "settings": {"steps": 12, "guidance": 3.5},
    },
    "full_size_engines.json": {
        "engines": {"denoiser": {"precision": "fp8", "seconds": 90.2, "peak_gb": 18.0, "engine_gb": 8.7}},
        "targets": {"denoiser": {"seconds": 97, "peak_gb": 19.5}},
        "again": {"denoiser": {"seconds": 80.0}},
    },
    "tasks.json": {
        "settings": {"cases": 64},
        "flowedit": CHANGED,
        "reference": CHANGED,
        "inpaint": CHANGED,
        "fill": CHANGED,
        "image": SHARES,
        "control": SHARES,
    },
    "tiles.json": {
        "settings": {"memory_tile_px": 512},
        "memory": [
            {"side": 1024, "tiled": False, "peak_mb": 1256.0},
            {"side": 4096, "tiled": True, "peak_mb": 474.0},
        ],
    },
    "build.json": {
        "sizes": {
            name: {
                "parameters": billions * 1e9,
                "ours": {"peak_gb": 0.5, "seconds": 9.0},
                "plain": {"peak_gb": 4 * billions, "seconds": 30.0},
            }
            for name, billions in (("0.15", 0.15), ("0.6", 0.6))
        },
        "extrapolated": {"parameters": 11.9e9, "plain": {"peak_gb": 47.6}},
        "measured_at_full_size": {"ours": {"peak_gb": 0.8}},
    },
    "cpu.json": {
        "sizes": {
            "mid": {
                "parameters": 54e6,
                "tokens": 1152,
                "best_of_ours": {"fp32": "ours, onnxruntime, fp32", "bf16": "ours, openvino, bf16"},
                "rows": [
                    {"name": "diffusers, fp32", "ms_per_step": 450.0, **APART, "largest_difference": 0.0},
                    {"name": "ours, onnxruntime, fp32", "ms_per_step": 300.0, **APART},
                    {"name": "ours, openvino, bf16", "ms_per_step": 200.0, **APART},
                ],
                "times_as_fast": {
                    "ours, onnxruntime, fp32 over diffusers, fp32": 1.5,
                    "ours, onnxruntime, fp32 over OpenVINO's": 0.97,
                    "ours, openvino, bf16 over diffusers, bf16": 1.2,
                },
            }
        }
    },
    "ladder.json": {
        "sizes": {
            "mid": {
                "rungs": [
                    {"name": "naive export", "seconds": FIGURES, "ms_per_step": 400.0},
                    {"name": "hoisted", "seconds": FIGURES, "gain": 1.25, "gain_over_naive": 1.25},
                    {"name": "on a GPU", "not_run_here": "no GPU"},
                ]
            }
        }
    },
    "fp8.json": {
        "targets": {"fp8_points_lost_at_most": 1.0},
        "rows": [
            {"name": "fp32", "score": SHARES},
            {
                "name": "fp8",
                "score": SHARES,
                "marks_lost": 0.3,
                "points_lost": 0.78,
                "pictures_lost": 5,
                "pictures_won": 3,
                "chance": 0.727,
                "psnr_db_median": 40.0,
                "ssim_mean": 0.99,
                "ms_ssim_distance_mean": 0.001,
            },
        ],
    },
}
FASTER = Ratio(baseline="diffusers", median=3.0, p25=2.9, p75=3.1)
BENCH = [
    result(
        painter("ours", [100.0] * 12).model_copy(update={"faster": FASTER}), painter("diffusers", [300.0])
    ),
    roofline(),
    scaling(),
]
ABOUT = {"date": "2026-01-02T03:04:05+00:00", "hardware": {"cpu": "a CPU", "cores": 2, "gpu": None}}


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    blocks = (
        f"<!-- {name}: python benchmarks/table.py -->\n<!-- end of {name} -->"
        for name in ("numbers", "steps")
    )
    path.write_text("\n".join(["before", *blocks, "after\n"]))
    return path


@pytest.mark.parametrize("missing", [set(), {"cold_start.json"}, set(RESULTS)], ids=["none", "one", "all"])
def test_a_table_of_what_is_there(page, tmp_path, missing):
    for name in RESULTS.keys() - missing:
        (tmp_path / name).write_text(json.dumps({**ABOUT, **RESULTS[name]}))
    (tmp_path / "bench").mkdir()
    for found in BENCH:
        save(tmp_path / "bench" / f"{found.kind}.json", found)
    arguments = ("--page", page, "--results", tmp_path)
    assert table("--check", *arguments).returncode == 1
    assert table(*arguments).returncode == 0
    assert table("--check", *arguments).returncode == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    for name in RESULTS:
        assert (f"benchmarks/results/{name}" in text) == (name not in missing)
    assert "ours | 100.0 ms a picture (spread 0%); 3.00 times as fast as diffusers (2.90 to 3.10)" in text
    assert "denoiser 50% (compute); ceilings: matrix products fp32 100 GFLOP/s, copies 10.0 GB/s" in text
    assert "time grows with the power of | tokens 256 to 1024: 1.10 |" in text
    if "build.json" not in missing:
        assert "0.60 B: 2.4 GB in 30 s, ours 0.5 GB in 9 s |" in text
        assert "11.9 B, a straight line through these | 48 GB; ours, measured, 0.8 GB" in text
    if "cpu.json" not in missing:
        assert "300.0 ms a step; 1.50 times as fast as diffusers, fp32, 0.97 times as fast as" in text
        assert "faster than each; missed against OpenVINO's |" in text
        assert "| ms a step | mid: 54 M, 1152 tokens | PSNR of the latents |\n|---|---|---|\n" in text
        assert "| diffusers, fp32 | 450.0 | the reference |" in text
        assert "| ours, openvino, bf16 | **200.0** | 51 dB |" in text
    if "ladder.json" not in missing:
        assert "400.0 ms a step | hoisted x1.25; 1.25 times as fast in all |" in text
    if "flux_nano_score.json" not in missing:
        assert "colour 98.7%, shape 50.0%, place 100.0%" in text
        assert "missed in shape |" in text
    if "full_size_engines.json" not in missing:
        assert "90 s, 18.0 GB of memory; the plan has 8.70 GB; 80 s when repeated" in text
    if "tasks.json" not in missing:
        assert "change made 90.0%, other marks kept 94.0%, pixels that should stay 33.3 dB" in text
        assert "made 80%, kept 95%; missed in kept |" in text
    if "tiles.json" not in missing:
        assert "4096x4096 474 MB; in one piece 1024x1024 1256 MB" in text
    if "fp8.json" not in missing:
        row = (
            "| flux-nano in fp8 | marks -0.3 points; pictures all right -0.8 points (5 lost, 3 won, p = 0.73)"
        )
        assert f"{row}; PSNR to fp32 40.0 dB" in text


def test_the_model_card_is_what_the_scores_say():
    command = [sys.executable, "-m", "nano.card", "--check"]
    found = subprocess.run(
        command, cwd=ROOT / "examples" / "flux-nano", capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
