"""Options that the commands of `flux-run` share, and their types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from flux_trt.runtime import notation
from flux_trt.runtime.progress import KINDS

Command = TypeVar("Command", bound=Callable[..., Any])
ENGINES = "FLUX_TRT_ENGINES"
"""The environment variable of `--engines`."""
PICTURE = click.Path(path_type=Path, dir_okay=False)


class Size(click.ParamType):
    """WIDTHxHEIGHT in pixels, as (width, height)."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split "1024x768"."""
        try:
            return notation.size(str(value))
        except ValueError as fault:
            self.fail(str(fault), param, ctx)


class Margins(click.ParamType):
    """LEFT,TOP,RIGHT,BOTTOM in pixels."""

    name = "L,T,R,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split "0,0,256,0"."""
        try:
            return notation.margins(str(value))
        except ValueError as fault:
            self.fail(str(fault), param, ctx)


class Sigmas(click.ParamType):
    """LEVEL,LEVEL,..., as floats."""

    name = "S,S,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split "1,0.75,0.5"."""
        try:
            return notation.sigmas(str(value))
        except ValueError as fault:
            self.fail(str(fault), param, ctx)


def of_schedule(command: Command) -> Command:
    """Which noise levels are walked."""
    for option in reversed(
        [
            click.option(
                "--shift",
                type=click.FloatRange(min=0, min_open=True),
                help="Move the noise levels up, for all sizes alike; 1 is none.  [default: the bundle's way]",
            ),
            click.option(
                "--sigmas",
                type=Sigmas(),
                metavar="S,S,...",
                help="Noise levels falling from 1, before the shift; they say the number of steps.",
            ),
            click.option(
                "--solver",
                type=click.Choice(["euler", "ab2"]),
                default="euler",
                show_default=True,
                help="How steps follow the velocity; ab2 looks at the step before, too, and needs fewer of "
                "them for the same picture. An edit is walked by euler.",
            ),
        ]
    ):
        command = option(command)
    return command


def of_pictures(command: Command) -> Command:
    """What becomes of the pictures: where, how large, how many, from which seed."""
    for option in reversed(
        [
            click.option(
                "-o",
                "--out",
                "--output",
                "output",
                type=click.Path(path_type=Path),
                default="out.png",
                show_default=True,
                help="Where to write: a .png, .jpg or .webp; several become OUT-0.png, OUT-1.png, ...",
            ),
            click.option(
                "--force",
                is_flag=True,
                help="Replace files that are there; without it only the same pictures are.",
            ),
            click.option(
                "--quality",
                type=click.IntRange(1, 100),
                help="Of JPEG and WebP.  [default: 95]",
            ),
            click.option(
                "--from",
                "again",
                type=PICTURE,
                metavar="PICTURE",
                help="Paint a picture again, as its own file says; options beside it take precedence.",
            ),
            click.option(
                "--size",
                type=Size(),
                metavar="WxH",
                help="Width and height in pixels.  [default: the given picture's, or the bundle's]",
            ),
            click.option(
                "--seed",
                type=click.IntRange(0, 2**64 - 1),
                default=0,
                show_default=True,
                help="Of the first picture; the others count up.",
            ),
            click.option(
                "-n",
                "--count",
                type=click.IntRange(min=1),
                default=1,
                show_default=True,
                help="Pictures per prompt.",
            ),
            click.option(
                "--batch",
                type=click.IntRange(min=1),
                default=1,
                show_default=True,
                help="Pictures painted at once; more need more memory.",
            ),
            click.option(
                "--lora",
                metavar="FILE[:STRENGTH]",
                multiple=True,
                help="Paint with a LoRA; of a bundle built with --lora-rank. Several add up.  [strength: 1]",
            ),
            click.option(
                "--preview",
                type=PICTURE,
                help="Write to this PNG what the picture is going to be, while it is painted; each time "
                "costs a run of the decoder, and on a GPU the steps are launched one by one.",
            ),
            click.option(
                "--preview-every",
                type=click.IntRange(min=1),
                metavar="STEPS",
                help="How often.  [default: after each quarter of the steps]",
            ),
        ]
    ):
        command = option(command)
    return command


def of_machine(command: Command) -> Command:
    """Where it runs and what it prints."""
    for option in reversed(
        [
            click.option(
                "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
            ),
            click.option(
                "--backend",
                type=click.Choice(["auto", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]),
                default="auto",
                show_default=True,
                help="What runs the stages; auto is onnxruntime on a GPU, and OpenVINO on a CPU where it is "
                "installed. TensorRT needs engines (flux-export engines).",
            ),
            click.option(
                "--memory",
                type=click.Choice(["resident", "sequential", "streaming"]),
                default="resident",
                show_default=True,
                help="All stages loaded, one at a time, or weights streamed through the GPU (TensorRT).",
            ),
            click.option(
                "--tile",
                type=click.IntRange(min=0),
                help="Pixels of the tiles that the VAE works in; 0: never tile.  "
                "[default: 1024 for pictures of more than 2 megapixels]",
            ),
            click.option(
                "--engines",
                type=click.Path(path_type=Path, file_okay=False),
                envvar=ENGINES,
                show_envvar=True,
                help="A folder with TensorRT engines beside those in the bundle.",
            ),
            click.option(
                "--threads",
                type=click.IntRange(min=1),
                help="That a CPU computes on.  [default: the CPUs that this process may use]",
            ),
            click.option(
                "--compute",
                type=click.Choice(["auto", "fp32", "bf16"]),
                default="auto",
                show_default=True,
                help="What a CPU computes the loop in. bf16 is meant for OpenVINO on CPUs "
                "with AMX; auto is what the bundle was built in, bf16 only where it is faster.",
            ),
            click.option(
                "--progress",
                type=click.Choice(KINDS),
                default="auto",
                show_default=True,
                help="On stderr: bars, plain lines at each tenth, or JSON objects with what, done and total; "
                "auto is bars on a terminal, and elsewhere a line every ten seconds. Asked for by name, a "
                "GPU tells each step, launched by itself, which is a little slower.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object, not file names."),
            click.option("--no-check", is_flag=True, help="Skip the SHA-256 of the bundle's files."),
        ]
    ):
        command = option(command)
    return command


_VERBOSE = "flux_trt.verbose"


def version_options(program: str) -> Callable[[Command], Command]:
    """`--version`, and `--verbose` beside it, for a command of ours."""

    def tell(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
        verbose = ctx.meta.get(_VERBOSE, False)
        if not wanted:
            if verbose:
                raise click.UsageError("--verbose goes with --version.", ctx)
            return
        from flux_trt.runtime.about import facts, installed

        click.echo(f"{program}, version {installed('flux_trt') or 'unknown: not installed'}")
        if verbose:
            for name, value in facts():
                click.echo(f"{name:<22} {value}")
        ctx.exit()

    def note(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
        ctx.meta[_VERBOSE] = wanted

    def add(command: Command) -> Command:
        command = click.option(
            "--verbose",
            is_flag=True,
            is_eager=True,  # seen before --version, whichever stands first
            expose_value=False,
            callback=note,
            help="With --version: also of packages, and devices and providers.",
        )(command)
        return click.option(
            "--version", is_flag=True, expose_value=False, callback=tell, help="Show the version and exit."
        )(command)

    return add
