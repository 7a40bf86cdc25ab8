"""`flux-run`: paint with a bundle from the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flux_trt.runtime.errors import FluxTrtError, RequestError

if TYPE_CHECKING:
    from flux_trt.runtime.backend import Device
    from flux_trt.runtime.memory import MemoryMode

# numpy, Pillow and onnxruntime are imported inside the commands: --help answers at once.


class Commands(click.Group):
    """A group whose expected faults are one line and exit code 1; bugs keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except FluxTrtError as fault:
            raise click.ClickException(str(fault)) from None


class Size(click.ParamType):
    """WIDTHxHEIGHT in pixels, as (width, height)."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split "1024x768"."""
        width, cross, height = str(value).lower().partition("x")
        if not (cross and width.isdecimal() and height.isdecimal()):
            self.fail(f"{value!r} is not WIDTHxHEIGHT, such as 1024x768", param, ctx)
        return int(width), int(height)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flux_trt", prog_name="flux-run")
def main() -> None:
    """Paint with a FLUX bundle, without PyTorch."""


@main.command(short_help="Paint prompts with a bundle.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option(
    "-o",
    "--out",
    "--output",
    "output",
    type=click.Path(path_type=Path),
    default="out.png",
    show_default=True,
    help="Where to write; several pictures become OUT-0.png, OUT-1.png, ...",
)
@click.option(
    "--size", type=Size(), metavar="WxH", help="Width and height in pixels.  [default: the bundle's]"
)
@click.option(
    "--steps", type=click.IntRange(min=1), help="How often the denoiser runs.  [default: the bundle's]"
)
@click.option("--guidance", type=float, help="How closely to follow the prompt.  [default: the bundle's]")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**64 - 1),
    default=0,
    show_default=True,
    help="Of the first picture; the others count up.",
)
@click.option(
    "-n", "--count", type=click.IntRange(min=1), default=1, show_default=True, help="Pictures per prompt."
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Pictures painted at once; more need more memory.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--backend",
    "backend_name",
    type=click.Choice(["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]),
    default="onnxruntime",
    show_default=True,
    help="What runs the stages; TensorRT needs engines (flux-export engines).",
)
@click.option(
    "--memory",
    type=click.Choice(["resident", "sequential", "streaming"]),
    default="resident",
    show_default=True,
    help="All stages loaded, one at a time, or weights streamed through the GPU (TensorRT).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of file names.")
@click.option("--no-check", is_flag=True, help="Skip the SHA-256 of the bundle's files.")
def generate(
    bundle: Path,
    prompts: tuple[str, ...],
    output: Path,
    size: tuple[int, int] | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    count: int,
    batch: int,
    device: Device,
    backend_name: str,
    memory: MemoryMode,
    as_json: bool,
    no_check: bool,
) -> None:
    """Paint every PROMPT with BUNDLE, a folder that flux-export build has written.

    The prompt - reads prompts from standard input, one per line.
    """
    texts = _read(prompts)
    _expect_writable(output)

    import time

    from flux_trt.runtime import picture
    from flux_trt.runtime.backend import connect
    from flux_trt.runtime.bundle import Bundle
    from flux_trt.runtime.loaded import needs
    from flux_trt.runtime.pipeline import STAGES, Pipeline
    from flux_trt.runtime.progress import bars
    from flux_trt.runtime.request import Request

    start = time.perf_counter()
    opened = Bundle.open(bundle, check=not no_check)
    request = Request.of(
        opened.manifest,
        texts,
        size=size,
        steps=steps,
        guidance=guidance,
        seed=seed,
        count=count,
        batch=batch,
    )
    backend = connect(backend_name, device, opened, memory, check=not no_check)
    if backend.gpu:
        needed = needs(opened, backend, memory, STAGES, request)
        click.echo(needed.line(backend.gpu), err=True)
        needed.expect_fit(backend.gpu)
    with Pipeline(opened, backend, memory) as pipeline:
        loaded = time.perf_counter()
        places = _places(output, len(request.prompts))
        written = []
        with bars() as progress:
            for path, painted in zip(places, pipeline.paint(request, progress), strict=True):
                picture.write(painted.image, path)
                written.append({"path": str(path), **painted.parameters, "seconds": painted.seconds})
    if not as_json:
        click.echo("\n".join(each["path"] for each in written))
    else:
        import json

        seconds = {"load": round(loaded - start, 4), "total": round(time.perf_counter() - start, 4)}
        click.echo(json.dumps({"device": backend.device, "seconds": seconds, "pictures": written}))


def _read(prompts: tuple[str, ...]) -> list[str]:
    """The prompts, with the lines of standard input in the place of "-"; blank lines are no prompts."""
    found: list[str] = []
    for prompt in prompts:
        found += filter(str.strip, sys.stdin.read().splitlines()) if prompt == "-" else [prompt]
    if not found:
        raise RequestError("standard input has no prompt; give one per line")
    return found


def _expect_writable(output: Path) -> None:
    import os

    if output.suffix.lower() != ".png":
        raise RequestError(f"{output} is not a .png name; pictures are written as PNG")
    if output.is_dir():
        raise RequestError(f"{output} is a folder; give a file name in it")
    if not output.parent.is_dir():
        raise RequestError(f"the folder {output.parent} does not exist; create it first")
    if not os.access(output.parent, os.W_OK):
        raise RequestError(f"the folder {output.parent} cannot be written; choose another")


def _places(output: Path, pictures: int) -> list[Path]:
    if pictures == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(pictures)]
