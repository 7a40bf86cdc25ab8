"""FP8 engines at FLUX.1's full size, on a machine without a GPU: trace, quantise and build every stage.

    python benchmarks/full_size_engines.py [--work DIR] [--out benchmarks/results]

The checkpoint has FLUX.1-dev's, T5-XXL's, CLIP-L's and the VAE's real shapes and random weights: 34 GB, and
about as much again for the bundle and its engines, in DIR. Nothing runs on them, so the calibration is made
up. Each engine is built for one size and one row a picture, measured and removed; the denoiser's once more
with two rows, as true guidance and FlowEdit need.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from machine import describe, write

TARGETS = {"denoiser": {"seconds": 97, "peak_gb": 19.5}}
NANO = Path(__file__).parent.parent / "examples" / "flux-nano"
PAIRS = "denoiser, two rows a picture"
STAGES = ("clip", "t5", "conditioner", "denoiser", "vae_encoder", "vae_decoder")


def write_checkpoint(folder: Path) -> int:
    """A whole FLUX.1-dev in bf16, as a BFL file with a diffusers folder for the rest; its bytes."""
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, T5EncoderModel

    sys.path.insert(0, str(NANO))
    from flux_trt.exporter.families.flux1.model import Conditioner, Denoiser
    from flux_trt.exporter.families.flux1.params import FLUX_DEV
    from nano import forms

    t5 = forms.t5(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
    clip = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    with torch.device("meta"):
        transformer = [Conditioner(FLUX_DEV), Denoiser(FLUX_DEV)]
        encoders = {"text_encoder": CLIPTextModel(clip), "text_encoder_2": T5EncoderModel(t5)}
        vae = AutoencoderKL(**forms.vae((128, 256, 512, 512), 2, side=1024))
    size = write_random(folder / "flux1-dev.safetensors", _shapes(transformer))
    parts = {**encoders, "vae": vae}
    for name, part in parts.items():
        (folder / name).mkdir()
        part.config.architectures = [type(part).__name__] if name != "vae" else None
        if name == "vae":
            part.save_config(folder / name)
        else:
            part.config.save_pretrained(folder / name)
        file = "diffusion_pytorch_model.safetensors" if name == "vae" else "model.safetensors"
        size += write_random(folder / name / file, _shapes([part]))
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(NANO / name, folder / name)
    shutil.copy(NANO / "model_index.json", folder)
    return size


def _shapes(modules: list) -> dict[str, tuple[int, ...]]:  # type: ignore[type-arg]
    """Parameters of the modules."""
    return {name: tuple(value.shape) for module in modules for name, value in module.named_parameters()}


def write_random(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """A bf16 file of tensors with these names and shapes, normal with deviation 0.02; its bytes."""
    import torch

    header, end = {}, 0
    for name, shape in sorted(shapes.items()):
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [end, end + 2 * math.prod(shape)],
        }
        end = header[name]["data_offsets"][1]
    text = json.dumps(header).encode()
    torch.manual_seed(0)
    tile = (0.02 * torch.randn(1 << 25)).to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, end, len(tile)):
            file.write(tile[: end - start])
    return 8 + len(text) + end


def write_calibration(checkpoint: Path, beside: Path, out: Path) -> None:
    """Ranges that a real model could have; the engines' build does not depend on them."""
    from flux_trt.exporter.checkpoints.open import open_checkpoint
    from flux_trt.exporter.families.plan import make_stages
    from flux_trt.exporter.families.recognise import recognise
    from flux_trt.exporter.families.stage import large_layers
    from flux_trt.exporter.quantise.calibration import Calibration, Settings, Size
    from flux_trt.exporter.quantise.ranges import identity

    opened = open_checkpoint(str(checkpoint), text_encoders=beside, vae=beside / "vae")
    size = Size(amax=20.0, p99_9=4.0, p99_99=8.0, p99_999=16.0, count=1)
    model = recognise(opened)
    stages = make_stages(model, "fp8", ["t5", "denoiser"])
    made = Calibration(
        variant="dev",
        weights=identity(model, {}),
        settings=Settings(prompts=["made up"], width=512, height=512, steps=1, guidance=3.5, seed=0),
        layers={stage.name: dict.fromkeys(large_layers(stage), size) for stage in stages},
        tool="benchmarks/full_size_engines.py: made up, never run",
        created=str(describe()["date"]),
    )
    out.write_text(made.dumps(), encoding="utf-8")


def run(arguments: list[str]) -> tuple[float, str]:
    """Seconds and standard error of a flux-export command."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "flux_trt.exporter.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr[-800:]}")
    return time.perf_counter() - started, done.stderr


def build_engine(bundle: Path, stage: str, size: str, *more: str) -> dict[str, object]:
    """Build one engine for sm 8.9 with one profile, of one size, and remove it."""
    command = ["engines", str(bundle), "--backend", "tensorrt-rtx", "--sm", "8.9", "--stages", stage]
    wall, told = run([*command, "--sizes", size, "--no-wide", *more])
    told_of = rf"^{stage}: (\w+) engine .*, ([\d.]+) MB in ([\d.]+) s with ([\d.]+) GB"
    ((precision, megabytes, seconds, peak),) = re.findall(told_of, told, re.M)
    shutil.rmtree(bundle / "engines")
    found = {
        "precision": precision,
        "engine_gb": round(float(megabytes) / 1e3, 3),
        "seconds": float(seconds),
        "command_seconds": round(wall, 1),
        "peak_gb": float(peak),
    }
    print(stage, found, flush=True)
    return found


def measure(folder: Path, size: str) -> dict[str, object]:
    """Export in fp8, then build each stage's engine for sm 8.9."""
    checkpoint, bundle = folder / "flux1-dev.safetensors", folder / "bundle"
    # In a child: a process's peak memory is at least that of the one it was started from.
    if not (folder / "calibration.json").exists():
        subprocess.run([sys.executable, __file__, "--write", folder], check=True)
    others = ["--text-encoders", str(folder), "--vae", str(folder / "vae")]
    export = ["build", str(checkpoint), "--out", str(bundle), "--precision", "fp8", *others]
    seconds, told = run([*export, "--calibration", str(folder / "calibration.json")])
    found: dict[str, object] = {
        "export_seconds": round(seconds, 1),
        "graph_seconds": {
            name: float(each) for name, each in re.findall(r"^(\w+): .* written in ([\d.]+) s$", told, re.M)
        },
    }
    engines = {stage: build_engine(bundle, stage, size, "--no-pairs") for stage in STAGES}
    engines[PAIRS] = build_engine(bundle, "denoiser", size)
    return {**found, "size": size, "engines": engines}


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--work", type=Path, help="a folder on a disk with 75 GB free, kept; else a temporary one"
    )
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument(
        "--again", choices=STAGES, help="build one engine of --work again, into the same file"
    )
    parser.add_argument("--write", type=Path, help="only write checkpoint and calibration, here")
    args = parser.parse_args()
    if args.write:
        write_checkpoint(args.write)
        write_calibration(args.write / "flux1-dev.safetensors", args.write, args.write / "calibration.json")
        return
    path = args.out / "full_size_engines.json"
    if args.again:
        before = json.loads(path.read_text(encoding="utf-8"))
        built = build_engine(args.work / "bundle", args.again, args.size, "--no-pairs")
        again = {"date": describe()["date"], **built}
        write(path, {**before, "again": {**before.get("again", {}), args.again: again}})
        return
    if args.work:
        found = measure(args.work, args.size)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(Path(folder), args.size)
    write(path, {**describe(), **found, "targets": TARGETS})


if __name__ == "__main__":
    main()
