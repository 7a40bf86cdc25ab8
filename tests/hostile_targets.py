"""The readers of files that others wrote, one entry each: how a hostile file is made, and who reads it.

A new reader is one more entry of `TARGETS`: `Target(make, read)`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hostile_mutations import OUTSIDE, damaged, distorted
from hostile_run import Target
from PIL import Image

from flux_trt.exporter.checkpoints.diffusers import read_part, read_scheduler
from flux_trt.exporter.checkpoints.gguf_tokenizer import read_tokenizer
from flux_trt.exporter.checkpoints.single import read_parts
from flux_trt.exporter.checkpoints.tensorfile import read_header, read_metadata
from flux_trt.exporter.quantise import calibration
from flux_trt.runtime import jobs
from flux_trt.runtime import results as written
from flux_trt.runtime.bundle import engine, manifest
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.window import Window
from flux_trt.runtime.pictures import picture

HERE = Path(__file__).parent
SCHEMA1 = HERE / "data" / "schema1" / "bundle"
NANO = HERE.parent / "examples" / "flux-nano"

Make = Callable[[random.Random, Path], object]


@cache
def tiny() -> Path:
    """The bundle of hand-made graphs, made once."""
    import tempfile

    import tiny_bundle

    return tiny_bundle.build(Path(tempfile.mkdtemp(prefix="hostile-")) / "bundle")


def rewritten(rng: random.Random, data: bytes) -> bytes:
    """JSON text that is wrong: in half of the cases as text, else as a value."""
    return damaged(rng, data) if rng.random() < 0.25 else distorted(rng, json.loads(data))


def _special(rng: random.Random, path: Path) -> bool:
    """Puts something that is no file, or not in the folder, in a file's place, now and then."""
    if rng.random() > 0.02:
        return False
    path.unlink(missing_ok=True)
    what = rng.randrange(5)
    if what == 0:
        os.mkfifo(path)
    elif what == 1:
        path.mkdir()
    else:
        path.symlink_to(("/dev/zero", str(path.parent / OUTSIDE), path.name)[what - 2])
    return True


def _file(name: str, source: Callable[[], bytes], change: Callable[[random.Random, bytes], bytes]) -> Make:
    def make(rng: random.Random, folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(change(rng, source()))

    return make


def _bundle(source: Callable[[], Path], suffix: str) -> Make:
    """A bundle with one hostile file, whose hash the manifest has: nothing but its reader stands before it."""

    def make(rng: random.Random, folder: Path) -> str:
        shutil.copytree(source(), folder / "bundle")
        path = rng.choice(sorted((folder / "bundle").glob(suffix if "/" in suffix else f"*{suffix}")))
        if path.name == "bundle.json":
            if not _special(rng, path):
                path.write_bytes(rewritten(rng, path.read_bytes()))
            return ""
        data = path.read_bytes()
        others = tuple(each.read_bytes() for each in sorted(path.parent.glob(f"*{path.suffix}")))
        data = (
            data.replace(b".safetensors", rng.choice((b"/../../x.sf", b"../outside/s")))
            if rng.random() < 0.1
            else rewritten(rng, data) if path.suffix == ".json" else damaged(rng, data, others)
        )
        path.write_bytes(data)
        record = json.loads((folder / "bundle" / "bundle.json").read_text())
        inside = path.relative_to(folder / "bundle").as_posix()
        record["files"][inside] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "bundle" / "bundle.json").write_text(json.dumps(record))
        return inside

    return make


def _open(folder: Path, _: object) -> None:
    Bundle.open(folder / "bundle")


def _windows(folder: Path, _: object) -> None:
    opened = Bundle.open(folder / "bundle")
    for spec in opened.manifest.tokenizers.values():
        Window(opened.root, spec).of(["a red circle", "", "\u00e9\u4e2d" * 20])


def _paint(backend: str) -> Callable[[Path, object], None]:
    def read(folder: Path, _: object) -> None:
        from flux_trt.runtime.pipeline import Pipeline

        Pipeline.load(folder / "bundle", backend, "cpu").generate("a red circle", size=(64, 64), steps=1, seed=1)

    return read


def _safetensors() -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "a.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
        "b.weight": {"dtype": "BF16", "shape": [3], "data_offsets": [32, 38]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(38)


def _header(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.4:
        return damaged(rng, data)
    length = int.from_bytes(data[:8], "little")
    text = distorted(rng, json.loads(data[8 : 8 + length]))
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _read_safetensors(folder: Path, _: object) -> None:
    for info in read_header(folder / "model.safetensors").values():
        info.read()
    read_metadata(folder / "model.safetensors")


def _read_single(folder: Path, _: object) -> None:
    read_parts(folder / "model.safetensors")


@cache
def _gguf() -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pieces = ["<pad>", "</s>", "<unk>", "\u2581a", "b", "\u2581red"]
    said = [
        text("general.architecture") + struct.pack("<I", 8) + text("t5"),
        text("general.alignment") + struct.pack("<II", 4, 32),
        text("tokenizer.ggml.model") + struct.pack("<I", 8) + text("t5"),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(pieces)) + b"".join(map(text, pieces)),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ6f", 9, 6, 6, 0, 0, 0, -1, -2, -3),
        text("tokenizer.ggml.token_type") + struct.pack("<IIQ6i", 9, 5, 6, 3, 3, 2, 1, 1, 1),
    ]
    listed = [
        text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 2, 8, 0),
        text("output_norm.weight") + struct.pack("<IQIQ", 1, 4, 0, 96),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(said)) + b"".join(said + listed)
    return head + bytes(-len(head) % 32) + bytes(160)


def _read_gguf(folder: Path, _: object) -> None:
    for tensor in read_gguf(folder / "model.gguf")[0].values():
        tensor.read()


def _read_gguf_tokenizer(folder: Path, _: object) -> None:
    read_tokenizer(folder / "model.gguf").backend.encode("a red")


def _checkpoint(rng: random.Random, folder: Path) -> None:
    part = folder / "text_encoder"
    part.mkdir()
    data = _safetensors()
    (part / "model-00001-of-00001.safetensors").write_bytes(data)
    index = {"metadata": {"total_size": 38}, "weight_map": {"a.weight": "model-00001-of-00001.safetensors"}}
    config = json.loads((NANO / "text_encoder" / "config.json").read_text())
    (part / "model.safetensors.index.json").write_bytes(rewritten(rng, json.dumps(index).encode()))
    (part / "config.json").write_bytes(
        rewritten(rng, json.dumps(config).encode()) if rng.random() < 0.5 else json.dumps(config).encode()
    )
    scheduler = (NANO / "scheduler" / "scheduler_config.json").read_bytes()
    (folder / "scheduler_config.json").write_bytes(rewritten(rng, scheduler))


def _read_checkpoint(folder: Path, _: object) -> None:
    from flux_trt.runtime.errors import FluxTrtError

    try:
        read_scheduler(folder / "scheduler_config.json")
    finally:
        try:
            read_part("clip", folder / "text_encoder")
        except FluxTrtError:
            pass


def _calibration() -> bytes:
    size = {"amax": 1.0, "p99_9": 0.5, "p99_99": 0.7, "p99_999": 0.9, "count": 10}
    settings = {"prompts": ["a"], "width": 64, "height": 64, "steps": 1, "guidance": None, "seed": 0}
    return json.dumps({
        "schema_version": 1, "variant": "dev", "weights": {"transformer": "0" * 64}, "settings": settings,
        "layers": {"denoiser": {"x_embedder": size}}, "tool": "flux_trt", "created": "now",
    }).encode()  # fmt: skip


JOB: dict[str, Any] = {
    "prompt": "a red circle", "size": "64x64", "seed": 3, "output": "circle.png", "steps": 2, "guidance": 1.5,
    "image": "a.png", "mask": "m.png", "outpaint": "0,0,16,16", "reference": ["r.png"], "strength": 0.5,
}  # fmt: skip


def _jobs(rng: random.Random, folder: Path) -> None:
    lines = [distorted(rng, JOB).replace(b"\n", b" ") for _ in range(3)]
    (folder / "jobs.jsonl").write_bytes(b"\n".join(lines))
    text = json.dumps(JOB).encode()
    result = {"line": 1, "job": hashlib.sha256(text).hexdigest(), "ok": True, "path": "circle.png", "parameters": {}}
    (folder / "more.jsonl").write_bytes(text)
    (folder / "jobs.results.jsonl").write_bytes(distorted(rng, result) + b"\n")


def _read_jobs(folder: Path, _: object) -> None:
    for each in jobs.read(folder / "jobs.jsonl"):
        if isinstance(each, jobs.BadLine):
            assert each.error and len(each.error.splitlines()) == 1, f"not one line: {each.error!r}"
    with written.Results(folder / "jobs.results.jsonl") as results:
        for each in jobs.read(folder / "more.jsonl"):
            assert isinstance(each, jobs.Job)
            place = results.place(each)
            results.owner(place or folder)


@cache
def _pictures() -> tuple[bytes, ...]:
    values = np.random.default_rng(1).integers(0, 256, (24, 32, 4), np.uint8)
    found = []
    for kind, mode in (("PNG", "RGBA"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("GIF", "P"), ("TIFF", "RGB"),
                       ("BMP", "RGB"), ("PNG", "I;16"), ("PPM", "L"), ("TGA", "RGB"), ("ICO", "RGBA")):  # fmt: skip
        file = io.BytesIO()
        image = Image.fromarray(values)
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
        image.save(file, kind)
        found.append(file.getvalue())
    return tuple(found)


def _picture(rng: random.Random, folder: Path) -> None:
    (folder / "p.png").write_bytes(damaged(rng, rng.choice(_pictures()), _pictures()))


def _read_picture(folder: Path, _: object) -> None:
    picture.as_pixels(picture.read(folder / "p.png"), (32, 32))


def _read_mask(folder: Path, _: object) -> None:
    picture.as_mask(picture.read_mask(folder / "p.png"), (32, 32))


def _engine(rng: random.Random, folder: Path) -> None:
    place = folder / engine.FOLDER / "denoiser-0"
    place.mkdir(parents=True)
    recipe = {
        name: {"str": "x", "int": 1, "bool": False, "list": []}.get(str(each.annotation), "x")
        for name, each in engine.Recipe.model_fields.items()
    }
    record = {"recipe": recipe, "plan": {"bytes": 1, "sha256": "0" * 64}}
    if not _special(rng, place / engine.RECORD):
        (place / engine.RECORD).write_bytes(distorted(rng, record))


def _read_engines(folder: Path, _: object) -> None:
    engine.engines(folder)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """As the exporter reads it; imported late, since it needs the gguf package."""
    from flux_trt.exporter.checkpoints.quantised import gguf

    return gguf.read_gguf(path)


def _read_manifest(folder: Path, _: object) -> None:
    manifest.read(folder / "bundle")


TARGETS: dict[str, Target] = {
    "bundle.json": Target(_bundle(tiny, "bundle.json"), _open),
    "bundle.json, schema 1": Target(_bundle(lambda: SCHEMA1, "bundle.json"), _open),
    "tokenizers": Target(_bundle(tiny, "tokenizers/*.json"), _windows),
    "graphs, onnxruntime": Target(_bundle(tiny, ".onnx"), _paint("onnxruntime")),
    "graphs, openvino": Target(_bundle(tiny, ".onnx"), _paint("openvino")),
    "weights in a bundle": Target(_bundle(tiny, ".safetensors"), _paint("onnxruntime")),
    "safetensors": Target(_file("model.safetensors", _safetensors, _header), _read_safetensors),
    "single files": Target(_file("model.safetensors", _safetensors, _header), _read_single),
    "checkpoint folders": Target(_checkpoint, _read_checkpoint),
    "gguf": Target(_file("model.gguf", _gguf, damaged), _read_gguf),
    "gguf tokenizers": Target(_file("model.gguf", _gguf, damaged), _read_gguf_tokenizer),
    "calibration": Target(_file("c.json", _calibration, rewritten), lambda folder, _: _ignore(calibration.read(folder / "c.json"))),
    "jobs": Target(_jobs, _read_jobs),
    "pictures": Target(_picture, _read_picture),
    "masks": Target(_picture, _read_mask),
    "engine.json": Target(_engine, _read_engines),
}


def _ignore(_: object) -> None:
    """A reader's result that is not looked at."""
