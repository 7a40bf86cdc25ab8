"""LoRAs as they are asked for: on the command line, in jobs, in the record of a picture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from flux_trt.runtime import Pipeline
from flux_trt.runtime.again import recorded
from flux_trt.runtime.cli import main
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.lora.chosen import chosen

ASKED: dict[str, Any] = {"prompt": "a red circle", "size": (64, 64), "steps": 3}


@pytest.fixture(scope="module")
def files(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRAs."""
    folder, source = tmp_path_factory.mktemp("loras"), checkpoint("dev-like")
    return [
        loras.save(
            folder / f"{form}.safetensors", loras.FORMS[form](source, loras.update(source, seed, 0.12))
        )
        for seed, form in enumerate(("kohya", "peft"), 11)
    ]


def far(one: np.ndarray, other: np.ndarray) -> float:
    """The share of values that are more than one level apart."""
    return float((np.abs(one - other) > 1).mean())


def test_a_picture_says_its_loras_and_is_painted_again_from_them(
    lora_bundle: Path, files: list[Path], tmp_path: Path
) -> None:
    lora = shutil.copy(files[0], tmp_path / "style.safetensors")
    words = ["generate", str(lora_bundle), "a red circle", "--size", "64x64", "--steps", "3"]
    words += ["--backend", "onnxruntime", "--progress", "plain"]
    run = CliRunner()

    def painted(*more: str) -> Any:
        return run.invoke(main, [*words, *more])

    first = painted("--lora", f"{lora}:0.5", "-o", str(tmp_path / "one.png"))
    assert first.exit_code == 0, first.output
    (record,) = recorded(tmp_path / "one.png").parameters["lora"]
    assert (record["path"], record["strength"]) == (str(lora), 0.5)
    again = [
        "generate",
        str(lora_bundle),
        "--from",
        str(tmp_path / "one.png"),
        "-o",
        str(tmp_path / "two.png"),
    ]
    found = run.invoke(main, again)
    assert found.exit_code == 0, found.output
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    differs = painted("--lora", f"{lora}:0.6", "-o", str(tmp_path / "one.png"))
    assert differs.exit_code == 1
    assert "lora" in differs.output
    other = run.invoke(main, [*again, "--lora", f"{lora}:0.6", "--force"])
    assert other.exit_code == 0
    assert "--lora is" in other.output
    shutil.copy(files[1], lora)
    changed = run.invoke(main, again)
    assert changed.exit_code == 1
    assert "is not the LoRA that the picture was painted with (its SHA-256 differs)" in changed.output
    Path(lora).unlink()
    lost = run.invoke(main, again)
    assert lost.exit_code == 1
    assert f"the LoRA {lora} is not there" in lost.output


def test_jobs_have_loras_and_are_painted_anew_when_those_change(
    lora_bundle: Path, files: list[Path], tmp_path: Path
) -> None:
    for name, path in zip(("a", "b"), files, strict=False):
        shutil.copy(path, tmp_path / f"{name}.safetensors")
    jobs = [
        {"prompt": "a", "size": "64x64", "steps": 2, "output": f"{index}.png"} | more
        for index, more in enumerate(
            (
                {},
                {"lora": ["a.safetensors:0.5"]},
                {"lora": ["a.safetensors", "b.safetensors:-1"]},
                {"lora": ["c"]},
            )
        )
    ]
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(map(json.dumps, jobs)))
    words = ["generate", str(lora_bundle), "--jobs", str(path), "--backend", "onnxruntime"]
    first = CliRunner().invoke(main, words)
    assert first.exit_code == 1
    assert "3 painted, 0 kept, 1 failed" in first.output
    assert "no LoRA at" in (tmp_path / "jobs.results.jsonl").read_text()
    pictures = {
        name: np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("0.png", "1.png", "2.png")
    }
    assert far(pictures["0.png"], pictures["1.png"]) > 0.05
    assert far(pictures["1.png"], pictures["2.png"]) > 0.05
    assert "0 painted, 3 kept, 1 failed" in CliRunner().invoke(main, words).output
    shutil.copy(tmp_path / "b.safetensors", tmp_path / "a.safetensors")
    assert "2 painted, 1 kept, 1 failed" in CliRunner().invoke(main, words).output


def test_a_bundle_without_branches_refuses_before_any_work(
    bundle: Callable[..., Path], files: list[Path], tmp_path: Path
) -> None:
    words = ["generate", str(bundle("dev-like")), "a", "--lora", str(files[0]), "-o", str(tmp_path / "x.png")]
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 1
    assert "takes no LoRA at run time; build it with --lora-rank RANK" in found.output
    with Pipeline.load(bundle("dev-like"), "onnxruntime", "cpu") as pipeline:
        with pytest.raises(RequestError, match="build it with --lora-rank"):
            pipeline.set_loras([files[0]])
        pipeline.generate(**ASKED)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["gone.safetensors"], "no LoRA at gone.safetensors"),
        ([3], "lora has int in it"),
        (3, "lora is int"),
        ([("x.safetensors", "much")], "no LoRA at|the strength of"),
        ([{"path": "x.safetensors"}], "has no path or no SHA-256"),
        ([{"path": "/etc/passwd", "sha256": "0" * 64}], "is not there"),
    ],
)
def test_what_is_no_lora_is_one_line(given: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        chosen(given)


@pytest.mark.parametrize(
    "lora", ["x.safetensors", 5, [5], [{"path": "x"}], [["x.safetensors", 1.0]], {"a": 1}]
)
def test_a_record_that_names_no_lora_is_not_painted_from(tmp_path: Path, lora: Any) -> None:
    image = Image.new("RGB", (64, 64))
    told = {"prompt": "a", "seed": 0, "steps": 1, "width": 64, "height": 64, "task": "generate"} | {
        "flux_trt": "0",
        "lora": lora,
    }
    image.info["flux_trt"] = json.dumps(told)
    Pipeline.save(image, tmp_path / "picture.png")
    with pytest.raises(RequestError, match="does not say its lora"):
        recorded(tmp_path / "picture.png")
