"""That nothing changes: all that two installations build and paint, byte by byte.

    python benchmarks/unchanged record before/bin before.json
    python benchmarks/unchanged record after/bin after.json
    python benchmarks/unchanged compare before.json after.json

A recording has the SHA-256 of every graph, weights file and tokenizer, of a calibration's layers and of every
picture's pixels, and what the commands say of the pictures. It uses nothing of an installation but its
commands `flux-export` and `flux-run`. Bundles that share stages start as copies of each other, so that each
stage is built once. Record on one machine: the order of sums depends on the number of threads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bfl
from errands import BUILDS, NANO, PROMPTS, Build, draw
from PIL import Image

ROOT = Path(__file__).parents[2]
KINDS = {".onnx": "graphs", ".safetensors": "weight files", ".json": "tokenizers"}
PASSING = ("bundle", "content", "flux_trt", "backend_version", "seconds", "path", "results")
"""What is said of a picture but may change: the manifest's digest, versions, times and places."""
Found = dict[str, dict[str, Any]]
"""Kind -> name -> what must stay."""


def run(folder: Path, *command: str | Path) -> str:
    """Run in `folder`, and give what it prints.

    Raises:
        SystemExit: it failed; the last lines it said are the message.
    """
    started, told = time.perf_counter(), " ".join(map(str, command[1:]))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} {told} failed:\n{done.stderr[-2000:]}")
    print(f"{time.perf_counter() - started:5.1f} s  {told}", file=sys.stderr, flush=True)
    return done.stdout


def digest(content: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(content).hexdigest()


def lasting(said: Any) -> Any:
    """What a command says, without what may change."""
    if isinstance(said, dict):
        return {name: lasting(value) for name, value in said.items() if name not in PASSING}
    return [lasting(each) for each in said] if isinstance(said, list) else said


def picture(path: Path) -> dict[str, Any]:
    """Pixels and parameters; the PNG's own bytes have the manifest's digest among them."""
    with Image.open(path) as image:
        pixels = f"{image.mode} {image.width}x{image.height} ".encode() + image.tobytes()
        return {
            "pixels": digest(pixels),
            "parameters": lasting(json.loads(image.info.get("flux_trt") or image.info["parameters"])),
        }


def record(programs: Path, examples: Path, work: Path) -> Found:
    """Build and paint all errands in the folder `work`, which must not have anything in it."""
    export, paint = (programs.absolute() / name for name in ("flux-export", "flux-run"))
    found: Found = {kind: {} for kind in (*KINDS.values(), "calibrations", "pictures", "answers")}
    sources, given = work / "checkpoints", work / "given"
    given.mkdir(parents=True)
    draw(given)
    # Copies, on one file system with the bundles: whether a file can be linked decides where weights lie.
    for name in sorted({build.checkpoint for build in BUILDS.values()} - {bfl.NAME}):
        shutil.copytree(examples / name, sources / name, symlinks=True)
    bfl.write(sources / NANO / "transformer", sources / bfl.NAME)
    (sources / "prompts.txt").write_text("\n".join(PROMPTS))
    run(sources, export, "calibrate", NANO, "--prompts", "prompts.txt", "--steps", "2", "-o", "fp8.json")
    for stage, layers in json.loads((sources / "fp8.json").read_text())["layers"].items():
        found["calibrations"][stage] = digest(json.dumps(layers, sort_keys=True).encode())
    for name, build in BUILDS.items():
        bundle = work / name
        if build.after:
            shutil.copytree(work / build.after, bundle)
        run(sources, export, "build", build.checkpoint, "--out", bundle, *build.options)
        for path in (path for path in sorted(bundle.rglob("*.*")) if path.name != "bundle.json"):
            kind = found.setdefault(KINDS.get(path.suffix, "other files"), {})
            kind[str(path.relative_to(work))] = digest(path.read_bytes())
        paint_all(paint, build, bundle, given, work / "pictures" / name, found)
    return found


def paint_all(paint: Path, build: Build, bundle: Path, given: Path, out: Path, found: Found) -> None:
    """Paint all that a bundle is asked for, each command in a folder of its own with what is given."""
    for backend in build.backends:
        for task, (verb, *arguments) in build.commands.items():
            folder = out / backend / task
            shutil.copytree(given, folder)
            machine = ["--device", "cpu", "--backend", backend, "--json"]
            said = [run(folder, paint, verb, bundle, *arguments, *machine)]
            said += [path.read_text() for path in folder.glob("*.results.jsonl")]
            lines = [json.loads(line) for each in said for line in each.splitlines()]
            name = folder.relative_to(out.parent)
            found["answers"][str(name)] = lasting(lines)
            for path in sorted(set(folder.glob("*.png")) - {folder / each.name for each in given.iterdir()}):
                found["pictures"][str(name / path.name)] = picture(path)


def compare(before: Found, after: Found) -> list[str]:
    """A line for every kind, and one for every difference, which begins with "!"."""
    lines, differ = [], []
    for kind in sorted({*before, *after}):
        old, new = before.get(kind, {}), after.get(kind, {})
        for name in sorted({*old, *new}):
            if name not in old or name not in new:
                differ.append(f"! {kind}: {name} is only {'before' if name in old else 'after'}")
            elif old[name] != new[name]:
                differ.append(f"! {kind}: {name} differs: {apart(old[name], new[name])}")
        same = sum(old[name] == new.get(name) for name in old)
        lines.append(f"{same} {kind} identical, of {len(old)} before and {len(new)} after")
    return lines + differ


def apart(old: Any, new: Any) -> str:
    """What of a digest or of what is said differs, in short."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        return ", ".join(f"{name} {apart(old.get(name), new.get(name))}" for name in names)
    return f"{str(old)[:60]} became {str(new)[:60]}"


def main() -> None:
    """Record an installation, or compare two recordings and exit 1 where they differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record", help="build and paint everything")
    recording.add_argument("programs", type=Path, help="the folder with flux-export and flux-run")
    recording.add_argument("out", type=Path, help="the recording to write, JSON")
    recording.add_argument("--examples", type=Path, default=ROOT / "examples", help="default: %(default)s")
    recording.add_argument("--work", type=Path, help="a new folder to keep bundles and pictures in")
    comparing = verbs.add_parser("compare", help="say what is identical and what is not")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.verb == "record":
        if options.work and options.work.exists():
            parser.error(f"{options.work} exists, and its bundles would be reused; name a new folder")
        with tempfile.TemporaryDirectory() as scratch:
            work = (options.work or Path(scratch) / "work").absolute()
            found = record(options.programs, options.examples, work)
        options.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        return
    before, after = (json.loads(path.read_text()) for path in (options.before, options.after))
    lines = compare(before, after)
    print("\n".join(lines))
    sys.exit(any(line.startswith("!") for line in lines))


if __name__ == "__main__":
    main()
