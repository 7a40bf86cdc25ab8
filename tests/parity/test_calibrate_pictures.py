"""Calibration from pictures against diffusers: the same jobs, its own modules watched."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw

from flux_trt.exporter.build import build
from flux_trt.exporter.cli import main
from flux_trt.exporter.pictured import Jobs
from flux_trt.exporter.quantise import calibration
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.quantise.ranges import calibrate_checkpoint
from flux_trt.runtime import Pipeline
from flux_trt.runtime.errors import BuildError

Get = Callable[..., Path]
SIZE, STEPS, GUIDANCE = (48, 32), 3, 2.0
PROMPTS = ("a red circle", "a small blue square at the left")
SAME = {
    "double_blocks.0.img_attn.qkv": "transformer_blocks.0.attn.to_k",
    "double_blocks.0.img_attn.proj": "transformer_blocks.0.attn.to_out.0",
    "double_blocks.0.txt_attn.qkv": "transformer_blocks.0.attn.add_v_proj",
    "double_blocks.0.img_mlp.2": "transformer_blocks.0.ff.net.2",
    "single_blocks.0.linear1": "single_transformer_blocks.0.proj_mlp",
    "single_blocks.0.linear2": "single_transformer_blocks.0.proj_out",
}
AREA = {"_auto_resize": False, "max_area": SIZE[0] * SIZE[1]}
TASKS: Mapping[str, tuple[str, str, dict[str, str], dict[str, Any]]] = {
    # checkpoint, pipeline, its arguments by ours, what else is ours and what else is theirs
    "fill": ("fill-like", "FluxFillPipeline", {"image": "image", "mask": "mask_image"}, {}),
    "control": ("canny-like", "FluxControlPipeline", {"control": "control_image"}, {}),
    "reference": ("kontext-like", "FluxKontextPipeline", {"reference": "image"}, AREA),
    "image": ("dev-like", "FluxImg2ImgPipeline", {"image": "image"}, {"strength": 0.7}),
}


def scene(color: str, ground: str) -> Image.Image:
    image = Image.new("RGB", SIZE, ground)
    ImageDraw.Draw(image).ellipse((6, 4, 30, 26), fill=color)
    return image


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, colors in enumerate((("red", "white"), ("blue", "yellow"))):
        scene(*colors).save(folder / f"{index}.png")
        mask = Image.new("L", SIZE)
        ImageDraw.Draw(mask).rectangle((8 * index, 5, 25, 30), fill=255)
        mask.save(folder / f"mask-{index}.png")
    return folder


def lines(task: str, folder: Path) -> list[dict[str, Any]]:
    """The jobs of a task."""
    _, _, names, more = TASKS[task]
    found = []
    for index, prompt in enumerate(PROMPTS):
        job: dict[str, Any] = {"prompt": prompt, "size": list(SIZE)}
        for name in names:
            file = f"mask-{index}.png" if name == "mask" else f"{index}.png"
            job[name] = [file] if name == "reference" else file
        if task == "reference":
            job["auto_resize"] = False
        found.append(job | {name: value for name, value in more.items() if name == "strength"})
    (folder / f"{task}.jsonl").write_text("\n".join(map(json.dumps, found)) + "\n")
    return found


def watched(checkpoint: Path, task: str, folder: Path) -> dict[str, float]:
    """The largest input of diffusers' layers while its pipeline paints the jobs, one by one."""
    _, name, names, more = TASKS[task]
    pipe = getattr(diffusers, name).from_pretrained(checkpoint, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    largest: dict[str, float] = {}
    for path, layer in pipe.transformer.named_modules():
        if isinstance(layer, torch.nn.Linear):

            def hook(_: object, args: tuple[torch.Tensor], key: str = path) -> None:
                largest[key] = max(largest.get(key, 0.0), float(args[0].abs().max()))

            layer.register_forward_pre_hook(hook)
    for index, prompt in enumerate(PROMPTS):
        given = {
            theirs: opened(folder / (f"mask-{index}.png" if ours == "mask" else f"{index}.png"))
            for ours, theirs in names.items()
        }
        pipe(
            prompt=prompt,
            width=SIZE[0],
            height=SIZE[1],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(index),
            max_sequence_length=32,
            output_type="latent",
            **given,
            **more,
        )
    return largest


@pytest.mark.parametrize("task", TASKS)
def test_the_largest_values_are_diffusers_own(
    checkpoint: Get, pictures: Path, task: str, tmp_path: Path
) -> None:
    source = checkpoint(TASKS[task][0])
    lines(task, pictures)
    jobs = Jobs(pictures / f"{task}.jsonl", steps=STEPS, guidance=GUIDANCE)
    found = calibrate_checkpoint(str(source), tmp_path / "c.json", pictures=jobs)
    assert calibration.read(tmp_path / "c.json") == found
    settings = found.settings
    assert (settings.task, settings.prompts, settings.steps) == (task, list(PROMPTS), STEPS)
    assert (settings.width, settings.height, settings.guidance) == (*SIZE, GUIDANCE)
    expected = watched(source, task, pictures)
    for ours, theirs in SAME.items():
        assert found.layers["denoiser"][ours].amax == pytest.approx(expected[theirs], rel=2e-4), ours
    layer = found.layers["denoiser"]["double_blocks.0.img_attn.qkv"]
    tokens = 3 * 2 * (2 if task == "reference" else 1)
    moves = 2 if task == "image" else STEPS  # 0.7 of three
    width = layer.count // (len(PROMPTS) * moves * tokens)
    assert layer.count == len(PROMPTS) * moves * tokens * width


def test_a_model_of_pictures_is_built_in_fp8(
    checkpoint: Get, bundle: Get, pictures: Path, tmp_path: Path
) -> None:
    """As a user does it; the bundle paints near the one in fp32. Without pictures it says how."""
    source, out = str(checkpoint("fill-like")), tmp_path / "c.json"
    lines("fill", pictures)
    command = ["calibrate", source, "-o", str(out), "--jobs", str(pictures / "fill.jsonl")]
    done = CliRunner().invoke(main, [*command, "--steps", str(STEPS)])
    assert done.exit_code == 0, done.output
    assert "warning: the calibration is small: 2 prompts" in done.stderr
    with pytest.raises(BuildError, match="FLUX.1 fill paints from a picture; .* with --jobs"):
        build(source, tmp_path / "b", precision="fp8", fp8=Fp8(base="fp32"))
    build(source, tmp_path / "b", precision="fp8", fp8=Fp8(base="fp32", calibration=out))
    asked = {"image": scene("red", "white"), "mask": opened(pictures / "mask-0.png"), "steps": STEPS}
    painted = []
    for root in (tmp_path / "b", bundle("fill-like")):
        with Pipeline.load(root, "onnxruntime", "cpu") as pipeline:
            painted += pipeline.generate(PROMPTS[0], guidance=GUIDANCE, **asked)
    assert pictures_psnr(*painted) > 30


def pictures_psnr(one: Image.Image, other: Image.Image) -> float:
    apart = (np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2
    return float(10 * np.log10(255**2 / apart.mean()))


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("fill-like", {}, "line 1: a fill bundle paints into a hole of a picture"),
        (
            "fill-like",
            {"image": "nowhere.png", "mask": "mask-0.png"},
            "line 1: no picture .*nowhere.png; check the name",
        ),
        ("canny-like", {"image": "0.png"}, "line 1: a .* bundle paints from a control picture"),
        (
            "dev-like",
            {"image": "0.png", "mask": "mask-0.png"},
            "job 1 of .* has a mask, and the model has no input for it",
        ),
        ("dev-like", {"negative": "x"}, "line 1: calibration does not follow 'negative'; leave it out"),
        ("dev-like", {"pictures": 1}, "line 1: unknown field 'pictures'"),
        ("dev-like", {"size": "65x64"}, "line 1: size 65x64 is not possible"),
        ("dev-like", None, "jobs.jsonl has no jobs; give a JSON object on each line"),
        ("dev-like", "two", "job 2 of .* has another size than the first"),
    ],
)
def test_what_cannot_be_is_one_line(
    checkpoint: Get, pictures: Path, tmp_path: Path, name: str, line: Any, said: str
) -> None:
    jobs = pictures / "jobs.jsonl"
    job = {"prompt": "a", "size": "32x32", "steps": 1}
    given = [] if line is None else [job, job | {"size": "48x32"}] if line == "two" else [job | line]
    jobs.write_text("".join(json.dumps(each) + "\n" for each in given))
    command = ["calibrate", str(checkpoint(name)), "-o", str(tmp_path / "c.json"), "--jobs", str(jobs)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1, done.output
    (last,) = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    assert re.search(said, last), last
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_jobs_and_prompts_are_not_given_together(checkpoint: Get, pictures: Path, tmp_path: Path) -> None:
    lines("image", pictures)
    command = ["calibrate", str(checkpoint("dev-like")), "-o", str(tmp_path / "c.json")]
    command += ["--jobs", str(pictures / "image.jsonl"), "--prompts", str(pictures / "image.jsonl")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert "--prompts and --jobs are given" in done.stderr


def test_other_pictures_are_another_calibration(checkpoint: Get, pictures: Path, tmp_path: Path) -> None:
    """The state of a stopped run is of its own pictures alone."""
    from flux_trt.exporter.checkpoints.open import open_checkpoint
    from flux_trt.exporter.families.recognise import recognise

    model = recognise(open_checkpoint(str(checkpoint("canny-like"))))
    lines("control", pictures)
    jobs = Jobs(pictures / "control.jsonl", steps=1)
    before = jobs(model, "cpu").settings.pictures
    assert jobs(model, "cpu").settings.pictures == before
    kept = (pictures / "1.png").read_bytes()
    scene("green", "black").save(pictures / "1.png")
    try:
        assert jobs(model, "cpu").settings.pictures != before
    finally:
        (pictures / "1.png").write_bytes(kept)
