"""The readers of files that others wrote, one entry each: how a hostile file is made, and who reads it.

A new reader is one more entry of `TARGETS`: `Target(make, read)`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hostile_corpus as corpus
from hostile_corpus import NANO, tiny
from hostile_mutations import OUTSIDE, damaged, distorted
from hostile_run import Target

from flux_trt.exporter.checkpoints.diffusers import read_part, read_scheduler
from flux_trt.exporter.checkpoints.gguf_tokenizer import read_tokenizer
from flux_trt.exporter.checkpoints.open import open_checkpoint
from flux_trt.exporter.checkpoints.single import read_parts
from flux_trt.exporter.checkpoints.tensorfile import read_header, read_metadata
from flux_trt.exporter.families.flux1.flux1 import Flux1
from flux_trt.exporter.quantise import calibration
from flux_trt.runtime import jobs
from flux_trt.runtime import results as written
from flux_trt.runtime.again import Recorded, recorded
from flux_trt.runtime.bundle import engine, manifest
from flux_trt.runtime.bundle.bundle import Bundle
from flux_trt.runtime.bundle.window import Window
from flux_trt.runtime.errors import FluxTrtError, RequestError
from flux_trt.runtime.lora.file import read_lora
from flux_trt.runtime.lora.forms import Modules
from flux_trt.runtime.lora.term import Asked
from flux_trt.runtime.pictures import picture
from flux_trt.runtime.tasks.sources import digest

HERE = Path(__file__).parent
SCHEMA1 = HERE / "data" / "schema1" / "bundle"

Make = Callable[[random.Random, Path], object]


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
    """A bundle with one hostile file, whose hash the manifest has: only its reader stands before it."""

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
            else rewritten(rng, data)
            if path.suffix == ".json"
            else damaged(rng, data, others)
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

        Pipeline.load(folder / "bundle", backend, "cpu").generate(
            "a red circle", size=(64, 64), steps=1, seed=1
        )

    return read


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


def _read_gguf(folder: Path, _: object) -> None:
    for tensor in read_gguf(folder / "model.gguf")[0].values():
        tensor.read()


def _read_gguf_tokenizer(folder: Path, _: object) -> None:
    read_tokenizer(folder / "model.gguf").backend.encode("a red")


def _checkpoint(rng: random.Random, folder: Path) -> None:
    part = folder / "text_encoder"
    part.mkdir()
    data = corpus.plain()
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
    refused: list[FluxTrtError] = []
    for read in (
        lambda: read_scheduler(folder / "scheduler_config.json"),
        lambda: read_part("clip", folder / "text_encoder"),
    ):
        try:
            read()
        except FluxTrtError as fault:
            refused.append(fault)
    if refused:
        raise refused[-1]


def _jobs(rng: random.Random, folder: Path) -> None:
    lines = [distorted(rng, corpus.JOB).replace(b"\n", b" ") for _ in range(3)]
    (folder / "jobs.jsonl").write_bytes(b"\n".join(lines))
    text = json.dumps(corpus.JOB).encode()
    result = corpus.result(corpus.job_key(text))
    (folder / "more.jsonl").write_bytes(text)
    (folder / "jobs.results.jsonl").write_bytes(distorted(rng, result) + b"\n")


def _read_jobs(folder: Path, _: object) -> None:
    with written.Results(folder / "jobs.results.jsonl") as results:
        for each in jobs.read(folder / "more.jsonl"):
            assert isinstance(each, jobs.Job)
            place = results.place(each)
            results.owner(place or folder)
    for each in jobs.read(folder / "jobs.jsonl"):
        if isinstance(each, jobs.BadLine):  # the others go on; what it says goes into the results as it is
            assert each.error.isprintable(), f"not one line: {each.error!r}"
            raise RequestError(each.error)


def _picture(rng: random.Random, folder: Path) -> None:
    (folder / "p.png").write_bytes(damaged(rng, rng.choice(corpus.pictures()), corpus.pictures()))


def _read_picture(folder: Path, _: object) -> None:
    picture.as_pixels(picture.read(folder / "p.png"), (32, 32))


def _read_mask(folder: Path, _: object) -> None:
    picture.as_mask(picture.read_mask(folder / "p.png"), (32, 32))


def _engine(rng: random.Random, folder: Path) -> None:
    text = rewritten(rng, corpus.engine().dumps().encode())
    try:
        name = engine.Engine.model_validate_json(text).recipe.name  # its own place: the record is looked into
    except ValueError:
        name = corpus.engine().recipe.name
    place = folder / engine.FOLDER / name[:200]  # a longer one cannot be made
    place.mkdir(parents=True)
    if not _special(rng, place / engine.RECORD):
        (place / engine.RECORD).write_bytes(text)


def _lora(folder: Path, _: object) -> None:
    path = folder / "model.safetensors"
    for term in read_lora(Asked(path), Flux1.modules(None), "FLUX.1").terms:
        for tensor in term.tensors.values():
            tensor.read()


@cache
def _modules() -> bytes:
    """Of a small model, as a bundle has them."""
    return Flux1.modules(open_checkpoint(str(NANO))).dumps().encode()


def _read_modules(folder: Path, _: object) -> None:
    found = Modules.read(folder / "lora.json")
    for name in ("lora_unet_double_blocks_0_img_attn_qkv", "transformer.x_embedder", "x"):
        found.find(name)


def _painted(rng: random.Random, folder: Path) -> None:
    _tiny_manifest()
    (folder / "a.png").write_bytes(corpus.pictures()[0])
    source = {"path": "a.png", "sha256": digest(picture.read(folder / "a.png"))}
    parameters = corpus.PAINTED | {"image": source, "strength": 0.5}
    said = distorted(rng, parameters).decode("utf-8", "replace")
    if rng.random() < 0.4:
        said = json.dumps(parameters)
    kind = rng.choice(("PNG", "JPEG", "WEBP"))
    try:
        data = corpus.painted(said, kind)
    except ValueError:  # too long for an EXIF segment
        data = corpus.painted(said, "PNG")
    (folder / "p.png").write_bytes(damaged(rng, data) if rng.random() < 0.4 else data)


def _read_painted(folder: Path, _: object) -> None:
    found = recorded(folder / "p.png")
    found.found()
    # The small bundle cannot start from a picture; the rest is what it can be asked for.
    rest = {name: value for name, value in found.parameters.items() if name not in ("image", "strength")}
    Recorded(found.path, rest).request(_tiny_manifest())


def _read_engines(folder: Path, _: object) -> None:
    engine.engines(folder)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """As the exporter reads it; imported late, since it needs the gguf package."""
    from flux_trt.exporter.checkpoints.quantised import gguf

    return gguf.read_gguf(path)


@cache
def _tiny_manifest() -> manifest.Manifest:
    return manifest.read(tiny())


TARGETS: dict[str, Target] = {
    "bundle.json": Target(_bundle(tiny, "bundle.json"), _open),
    "bundle.json, schema 1": Target(_bundle(lambda: SCHEMA1, "bundle.json"), _open),
    "tokenizers": Target(_bundle(tiny, "tokenizers/*.json"), _windows),
    "graphs, onnxruntime": Target(_bundle(tiny, ".onnx"), _paint("onnxruntime")),
    "graphs, openvino": Target(_bundle(tiny, ".onnx"), _paint("openvino")),
    "weights in a bundle": Target(_bundle(tiny, ".safetensors"), _paint("onnxruntime")),
    "safetensors": Target(_file("model.safetensors", corpus.plain, _header), _read_safetensors),
    "single files": Target(_file("model.safetensors", corpus.clip, _header), _read_single),
    "LoRAs": Target(_file("model.safetensors", corpus.lora, _header), _lora),
    "LoRAs' modules": Target(_file("lora.json", _modules, rewritten), _read_modules),
    "checkpoint folders": Target(_checkpoint, _read_checkpoint),
    "gguf": Target(_file("model.gguf", corpus.gguf, damaged), _read_gguf),
    "gguf tokenizers": Target(_file("model.gguf", corpus.gguf, damaged), _read_gguf_tokenizer),
    "calibration": Target(
        _file("c.json", corpus.calibration, rewritten),
        lambda folder, _: _ignore(calibration.read(folder / "c.json")),
    ),
    "jobs": Target(_jobs, _read_jobs),
    "pictures": Target(_picture, _read_picture),
    "masks": Target(_picture, _read_mask),
    "pictures, --from": Target(_painted, _read_painted),
    "engine.json": Target(_engine, _read_engines),
}


def _ignore(_: object) -> None:
    """A reader's result that is not looked at."""
