"""Small files that are whole: what the hostile ones are made from."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flux_trt.runtime.bundle.engine import Engine, Recipe
from flux_trt.runtime.bundle.manifest import File
from flux_trt.runtime.pictures import texts

HERE = Path(__file__).parent
NANO = HERE.parent / "examples" / "flux-nano"
JOB: dict[str, Any] = {
    "prompt": "a red circle", "size": "64x64", "seed": 3, "output": "circle.png", "steps": 2, "guidance": 1.5,
    "image": "a.png", "mask": "m.png", "outpaint": "0,0,16,16", "reference": ["r.png"], "strength": 0.5,
}  # fmt: skip
PAINTED: dict[str, Any] = {
    "flux_trt": "0.1.0", "prompt": "a red circle",
    "seed": 3, "steps": 2, "width": 64, "height": 64, "task": "generate",
    "guidance": 1.5, "backend": "onnxruntime", "device": "cpu", "bundle": "0" * 64, "tile": None,
}  # fmt: skip


@cache
def tiny() -> Path:
    """The bundle of hand-made graphs, made once."""
    import tempfile

    import tiny_bundle

    return tiny_bundle.build(Path(tempfile.mkdtemp(prefix="hostile-")) / "bundle")


def safetensors(tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str]) -> bytes:
    """A file of zeros: name -> dtype, shape."""
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = int(np.prod(shape)) * {"F32": 4, "BF16": 2, "F16": 2}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)


def plain() -> bytes:
    return safetensors({"a.weight": ("F32", [2, 4]), "b.weight": ("BF16", [3])}, {"format": "pt"})


def lora() -> bytes:
    """diffusers' form, with PEFT's settings."""
    module = "transformer.single_transformer_blocks.0.attn.to_q"
    settings = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})
    shapes = {f"{module}.lora_A.weight": ("F32", [4, 96]), f"{module}.lora_B.weight": ("F32", [96, 4])}
    return safetensors(shapes, {"format": "pt", "lora_adapter_metadata": settings})


@cache
def clip() -> bytes:
    """flux-nano's CLIP: the smallest file that is a known network."""
    return (NANO / "text_encoder" / "model.safetensors").read_bytes()


@cache
def gguf() -> bytes:
    """A T5 with its tokenizer, as far as the header goes."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

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
    return head + bytes(-len(head) % 32) + bytes(128)


def calibration() -> bytes:
    size = {"amax": 1.0, "p99_9": 0.5, "p99_99": 0.7, "p99_999": 0.9, "count": 10}
    settings = {"prompts": ["a"], "width": 64, "height": 64, "steps": 1, "guidance": None, "seed": 0}
    return json.dumps({
        "schema_version": 1, "variant": "dev", "weights": {"transformer": "0" * 64}, "settings": settings,
        "layers": {"denoiser": {"x_embedder": size}}, "tool": "flux_trt", "created": "now",
    }).encode()  # fmt: skip


def engine() -> Engine:
    recipe = Recipe(
        stage="denoiser", graph="0" * 64, precision="fp32", flavour="tensorrt", version="10.13",
        capabilities=["8.9"], profiles=[{"batch": (1, 1, 1)}], plugins=[],
    )  # fmt: skip
    return Engine(recipe=recipe, plan=File(bytes=1, sha256="0" * 64))


def result(key: str) -> dict[str, Any]:
    return {"line": 1, "job": key, "ok": True, "path": "circle.png", "parameters": {}}


def job_key(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


@cache
def pictures() -> tuple[bytes, ...]:
    """One of each kind that Pillow writes, most of which are refused."""
    values = np.random.default_rng(1).integers(0, 256, (24, 32, 4), np.uint8)
    found = []
    plain = [(kind, "RGB") for kind in ("JPEG", "WEBP", "TIFF", "BMP", "TGA")]
    others = [("PNG", "RGBA"), ("PNG", "I;16"), ("GIF", "P"), ("PPM", "L"), ("ICO", "RGBA")]
    for kind, mode in plain + others:
        deep = Image.fromarray(values[..., 0].astype(np.uint16) * 200)
        image = deep if mode == "I;16" else Image.fromarray(values).convert(mode)
        file = io.BytesIO()
        image.save(file, kind)
        found.append(file.getvalue())
    return tuple(found)


def painted(said: str, kind: str) -> bytes:
    """A picture whose parameters are `said`."""
    image, file = Image.new("RGB", (64, 64)), io.BytesIO()
    both = {texts.OURS: said, texts.SHARED: "a red circle\nSteps: 2, Seed: 3"}
    if kind == "PNG":
        image.save(file, kind, pnginfo=texts.png(both))
    else:
        image.save(file, kind, exif=texts.exif(both))
    return file.getvalue()
