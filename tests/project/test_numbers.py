"""The tables of numbers: they are those of the results, and every results file has its rows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bench_runs import painter, result, roofline, scaling

from flux_trt.bench.schema import Ratio, save

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "benchmarks" / "table.py"


def block(name, text):
    """What stands between a block's two comments."""
    (found,) = re.findall(rf"<!-- {name}: [^\n]*-->\n(.*?)<!-- end of {name} -->", text, re.S)
    return found


def rows(text):
    return [line for line in text.splitlines() if line.startswith("| ")][1:]


def test_the_readme_has_few_numbers_and_one_page_has_all():
    few = block("few", (ROOT / "README.md").read_text(encoding="utf-8"))
    every = block("numbers", (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8"))
    assert 8 <= len(rows(few)) <= 12
    assert len(rows(every)) >= 40
    sources = re.findall(r"\(\.\./(benchmarks/results/[^)]+)\)", every)
    assert set(re.findall(r"\((benchmarks/results/[^)]+)\)", few)) <= set(sources)


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
    "soak.json": {
        "settings": {"different_sizes": 140},
        "ways": {
            "onnxruntime": {
                "loaded_mb": 120.0,
                "after_pictures_mb": {"1": 130.0, "150": 290.2},
                "closed_mb": 150.0,
            }
        },
        "again": {"sizes": 12, "bounded_times_as_fast": 0.98},
    },
    "lora.json": {
        "sizes": {
            "mid": {
                "tokens": 1152,
                "parameters": 56e6,
                "rows": [
                    {"backend": "onnxruntime", "way": way, "times_as_long_as_plain": times}
                    for way, times in (("plain", 1.0), ("rank 16", 1.11))
                ],
                "swap_seconds": {"rank 16": FIGURES},
                "merge_seconds": 30.4,
            }
        },
    },
    "fp8_qdq.json": {
        "rows": [
            {
                "name": name,
                "picture_seconds": FIGURES,
                "ours_times_as_fast": ratio,
                "marks_lost": 0.2,
                "psnr_db_median_to_fp32": 50.6,
            }
            for name, ratio in (("as they stand", 1.0), ("fused by onnxruntime", 1.833))
        ],
        "versions_tried": [
            {"onnxruntime": "1.24.1", "setting": "as they stand", "loads": True},
            {"onnxruntime": "1.24.1", "setting": "fused by onnxruntime", "loads": False},
        ],
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
        painter("flux_trt/onnxruntime", [100.0] * 12).model_copy(update={"faster": FASTER}),
        painter("diffusers", [300.0]),
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
        for name in ("few", "numbers", "steps", "soak", "lora")
    )
    path.write_text("\n".join(["before", *blocks, "after\n"]))
    return path


def headlines_of(few, missing):
    """The README's rows of RESULTS."""
    assert "| 100 ms with onnxruntime | diffusers 300 ms |" in few
    expected = {
        "full_size.json": "48 s for both graphs, 0.75 GB of memory | goal: at most 90 s, 1.5 GB |",
        "build.json": "| 0.8 GB | plain `torch.onnx.export`: 48 GB, by a straight line",
        "full_size_engines.json": "| 90 s, 18.0 GB of memory; 8.7 GB of plans |",
        "cold_start.json": "| 2.00 s | diffusers: 2.00 s |",
        "cpu.json": "| 300 ms with onnxruntime | diffusers 450 ms |",
        "flux_nano_score.json": "with one object 40.0%, with two 40.0% | its goals are missed in shape |",
        "tasks.json": "FlowEdit: made 90%, rest kept 94%; reference picture: made 90%, rest kept 94% | goal",
        "fp8.json": "| -0.3 points; pictures without any fault -0.8 points | goal: at most 1 lost |",
    }
    for name, row in expected.items():
        assert (row in few) == (name not in missing)


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
    whole = page.read_text()
    assert whole.startswith("before\n")
    assert whole.endswith("after\n")
    few, text = block("few", whole), whole[whole.index("<!-- numbers") :]
    for name in RESULTS:
        assert (f"(../benchmarks/results/{name})" in text) == (name not in missing)
        in_few = f"(benchmarks/results/{name})" in few
        assert in_few == (
            name not in missing
            and name not in {"tiles.json", "ladder.json", "soak.json", "fp8_qdq.json", "lora.json"}
        )
    headlines_of(few, missing)
    told = "flux_trt/onnxruntime | 100.0 ms a picture (spread 0%); 3.00 times as fast as diffusers"
    assert f"{told} (2.90 to 3.10)" in text
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
    if "soak.json" not in missing:
        assert "| loaded 120; 1: 130, 150: 290; closed 150 |" in text
        assert "| onnxruntime | 120 | 130 | 290 | 150 |" in text
        assert "where 12 sizes come again | 0.98 times as fast as without |" in text
    if "lora.json" not in missing:
        assert "with rank 16, onnxruntime | 1.11 times as long as a plain one |" in text
        assert "at run time | rank 16 2000 ms | merged at build: 30 s |" in text
        assert "| rank 16 | 1.11 | 2000 ms |" in text
    if "fp8_qdq.json" not in missing:
        assert '2000 ms a picture, 1.83 times as fast as "fused by onnxruntime"; marks -0.2 points' in text
        assert "| loads with 1.24.1 | loads with each |" in text
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
