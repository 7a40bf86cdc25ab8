"""Layout: rows behind a prompt as diffusers makes them, on every way in, and what is no layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from diffusers.modular_pipelines.flux3.prompt_upsampler import boxes_to_canvas, split_caption
from given import drawn

from flux_trt.runtime import Pipeline, recorded
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.cli import main
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.tasks.boxes import as_given, boxes_of
from flux_trt.runtime.tasks.request import Request

Get = Callable[..., Path]
BOXES: list[dict[str, Any]] = [
    {"id": "dog_1", "bbox": [0.1, 0.25, 0.5004, 0.9], "desc": 'a "brown" dog, caf\u00e9'},
    {"id": "cat_1", "bbox": [-0.001, 0, 1.002, 0.333]},
    {"bbox": [0, 0, 1, 1], "desc": "grass"},
]
MOVES: list[dict[str, Any]] = [
    {"id": "cup_1", "from": "ref_image_1", "src_bbox": [0, 0, 0.5, 0.5], "tgt_bbox": [0.5, 0.5, 1, 1]},
    {"id": "hat_1", "from": "target", "tgt_bbox": [0.1, 0.2, 0.3, 0.4], "desc": "a hat"},
    {"id": "van_1", "from": "ref_image_0", "src_bbox": [0.1, 0.2, 0.3, 0.4], "tgt_bbox": None},
]
PROMPT = "a dog <dog_1> and a cat <cat_1> on grass <obj_3>"
SMALL: dict[str, Any] = {"size": (48, 64), "steps": 2, "seed": 3}


@pytest.mark.parametrize(("boxes", "references"), [(BOXES, 0), (MOVES, 2)])
def test_rows_are_those_of_diffusers(boxes: list[dict[str, Any]], references: int, tmp_path: Path) -> None:
    expected = json.dumps(boxes_to_canvas(boxes), ensure_ascii=False)
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(boxes), encoding="utf-8")
    assert boxes_of(boxes, references) == boxes_of(file, references) == expected
    assert boxes_of(as_given(expected), references) == expected


def test_every_grid_point_survives_the_record() -> None:
    for n in range(1000):
        rows = json.dumps([{"id": "a", "bbox": [n, 0, n + 1, 1000], "desc": ""}])
        assert boxes_of(as_given(rows), 0) == rows


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ([], "an empty list"),
        ({"id": "a"}, "a dict"),
        ([[0, 0, 1, 1]], "box 1 is a list"),
        ([{"id": "a"}], "box 1 has no bbox"),
        ([{"bbox": [0, 0, 1]}], "the bbox of box 1 is"),
        ([{"bbox": "0,0,1,1"}], "the bbox of box 1 is"),
        ([{"bbox": [0, 0, 1, True]}], "the bbox of box 1 is"),
        ([{"bbox": [0, 0, 1, float("nan")]}], "the bbox of box 1 is"),
        ([{"bbox": [0, 0, 640, 480]}], "outside of the picture; .* not pixels"),
        ([{"bbox": [0.5, 0, 0.5, 1]}], "which has no area"),
        ([{"bbox": [0.9, 0, 0.1, 1]}], "which has no area"),
        ([{"id": "a dog", "bbox": [0, 0, 1, 1]}], "the id 'a dog'; give a letter"),
        ([{"id": "a", "bbox": [0, 0, 1, 1]}] * 2, "two boxes have the id 'a'"),
        ([{"bbox": [0, 0, 1, 1], "desc": 3}], "a desc that is an int"),
        ([{"bbox": [0, 0, 1, 1], "desc": "\ud800"}], "not valid Unicode"),
        ([{"bbox": [0, 0, 1, 1], "label": "dog"}], "has 'label'; the fields are bbox, desc, id"),
        ([{"bbox": [0, 0, 1, 1], "from": "target"}], "has 'bbox'; bbox stands alone"),
        ([{"from": "target"}], "no src_bbox or tgt_bbox"),
        ([{"tgt_bbox": [0, 0, 1, 1]}], 'has "from": None'),
        ([{"from": "here", "tgt_bbox": [0, 0, 1, 1]}], "has \"from\": 'here'"),
        ([{"from": "ref_image_1", "src_bbox": [0, 0, 1, 1]}], "1 reference pictures are given"),
        ([{"from": "target", "src_bbox": [0, 0, 1, 1]}], "is new and has a src_bbox"),
        ([{"from": "ref_image_0", "tgt_bbox": [0, 0, 1, 1]}], "has no src_bbox"),
    ],
)
def test_what_is_no_layout(given: Any, what: str) -> None:
    with pytest.raises(RequestError, match=what) as refused:
        boxes_of(given, 1)
    assert "\n" not in str(refused.value)
    assert ";" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"[", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[" * 100_000, "not JSON"), (b" " * (1 << 21), "1 MB")],
)
def test_what_is_no_file_of_boxes(content: bytes, what: str, tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    file.write_bytes(content)
    with pytest.raises(RequestError, match=what):
        boxes_of(file, 0)
    for name in ("gone.json", "a\0b"):
        with pytest.raises(RequestError, match="cannot read the boxes"):
            boxes_of(str(tmp_path / name), 0)


def test_a_model_that_knows_none_refuses_them(bundle: Get) -> None:
    with pytest.raises(RequestError, match=r"FLUX.1 .* was not made for boxes; leave them out"):
        Request.of(manifest.read(bundle("dev-like")), "a", boxes=BOXES)


def test_a_picture_with_boxes_is_that_of_the_whole_text(flux3_bundle: Get) -> None:
    whole = f"{PROMPT} {json.dumps(boxes_to_canvas(BOXES), ensure_ascii=False)}"
    assert split_caption(whole)[1] == boxes_to_canvas(BOXES)
    with Pipeline.load(flux3_bundle("distilled"), "onnxruntime") as pipeline:
        (written,) = pipeline.generate(whole, **SMALL)
        (found,) = pipeline.generate(f"{PROMPT}\n", boxes=BOXES, **SMALL)
        (plain,) = pipeline.generate(PROMPT, **SMALL)
        two = pipeline.generate([PROMPT, "grass"], boxes=BOXES, batch=2, **SMALL)
    assert np.array_equal(np.asarray(found), np.asarray(written))
    assert np.array_equal(np.asarray(two[0]), np.asarray(written))
    assert not np.array_equal(np.asarray(plain), np.asarray(written))
    parameters = json.loads(found.info["flux_trt"])
    assert parameters["prompt"] == f"{PROMPT}\n"
    assert boxes_of(parameters["boxes"], 0) == boxes_of(BOXES, 0)


def test_boxes_on_the_command_line_in_jobs_and_again(flux3_bundle: Get, tmp_path: Path) -> None:
    root, file = flux3_bundle("distilled"), tmp_path / "boxes.json"
    file.write_text(json.dumps(BOXES))
    cpu = ["--backend", "onnxruntime", "--device", "cpu"]

    def run(*arguments: Any) -> str:
        found = CliRunner().invoke(main, ["generate", str(root), *map(str, arguments), *cpu])
        assert found.exit_code == 0, found.output
        return found.output

    small, out = ("--size", "48x64", "--steps", "2"), tmp_path / "out.png"
    run(PROMPT, "--boxes", file, *small, "-o", out)
    run("--from", out, "-o", tmp_path / "again.png")
    jobs = tmp_path / "jobs.jsonl"
    asked = {"prompt": PROMPT, "size": "48x64", "steps": 2}
    lines = [
        {**asked, "boxes": "boxes.json", "output": "job.png"},
        {**asked, "boxes": BOXES, "output": "inline.png"},
        {**asked, "output": "none.png"},
    ]
    jobs.write_text("\n".join(map(json.dumps, lines)))
    assert "3 painted" in run("--jobs", jobs, "--batch", "3")
    assert "3 kept" in run("--jobs", jobs)
    first = np.asarray(drawn_from(out))
    for name in ("again", "job", "inline"):
        assert np.array_equal(np.asarray(drawn_from(tmp_path / f"{name}.png")), first)
    assert not np.array_equal(np.asarray(drawn_from(tmp_path / "none.png")), first)
    assert recorded(out).arguments()["boxes"] == as_given(boxes_of(BOXES, 0))
    jobs.write_text(json.dumps({**asked, "boxes": [{"bbox": [0, 0, 9, 9]}]}))
    found = CliRunner().invoke(main, ["generate", str(root), "--jobs", str(jobs), *cpu])
    assert found.exit_code == 1
    assert "outside of the picture" in (tmp_path / "jobs.results.jsonl").read_text()


@pytest.mark.parametrize("said", ["/dev/zero", {"id": "a"}, 3])
def test_a_record_names_no_file_of_boxes(tmp_path: Path, said: Any) -> None:
    from flux_trt.runtime.pictures import texts, written

    told = {
        "task": "generate",
        "prompt": "a",
        "seed": 0,
        "steps": 1,
        "width": 16,
        "height": 16,
        "boxes": said,
    }
    picture = drawn(16, 16, 1)
    picture.info[texts.OURS] = json.dumps({**told, "flux_trt": "0.2", "boxes": said})
    written.write(picture, tmp_path / "out.png")
    with pytest.raises(RequestError, match="does not say its boxes"):
        recorded(tmp_path / "out.png")


def drawn_from(path: Path) -> Any:
    from PIL import Image

    return Image.open(path)


def test_boxes_that_no_prompt_speaks_of_are_told(flux3_bundle: Get, caplog: pytest.LogCaptureFixture) -> None:
    found = manifest.read(flux3_bundle("base"))
    Request.of(found, "a dog <dog_1>", boxes=BOXES)
    assert "the prompt does not cite <cat_1>, <obj_3>" in caplog.text
    caplog.clear()
    Request.of(found, PROMPT, boxes=BOXES)
    assert "cite" not in caplog.text
    Request.of(found, "a cup <cup_1>", boxes=MOVES[:1], reference=[drawn(48, 48, 1), drawn(48, 48, 2)])
    with pytest.raises(RequestError, match="0 reference pictures are given"):
        Request.of(found, "a cup <cup_1>", boxes=MOVES[:1])
