"""`flux-run`: paint with a bundle from the command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from flux_trt.runtime.errors import FluxTrtError, RequestError
from flux_trt.runtime.options import PICTURE, Margins, of_machine, of_pictures

if TYPE_CHECKING:
    from flux_trt.runtime.bundle.manifest import Manifest
    from flux_trt.runtime.tasks.request import Request

# numpy, Pillow and onnxruntime are imported inside the commands: --help answers at once.


class Commands(click.Group):
    """A group whose expected faults are one line and exit code 1; bugs keep their traceback."""

    extras: ClassVar[Mapping[str, str]] = {}
    """The extra that brings a package; "" stands for those not named. Without either it is a bug."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except FluxTrtError as fault:
            raise click.ClickException(str(fault)) from None
        except ModuleNotFoundError as fault:
            name = fault.name or ""
            extra = self.extras.get(name, self.extras.get(""))
            if extra is None or name.startswith("flux_trt"):
                raise
            raise click.ClickException(
                f"{name} is not installed; install flux_trt with its extra: flux_trt[{extra}]"
            ) from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flux_trt", prog_name="flux-run")
def main() -> None:
    """Paint with a FLUX bundle, without PyTorch."""


@main.command(short_help="Paint prompts, from noise or from pictures.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@of_pictures
@click.option(
    "--steps", type=click.IntRange(min=1), help="How many steps the schedule has.  [default: the bundle's]"
)
@click.option("--guidance", type=float, help="How closely to follow the prompt.  [default: the bundle's]")
@click.option("--negative", metavar="PROMPT", help="What to keep away from; needs --true-cfg.")
@click.option("--true-cfg", type=float, help="Scale of true classifier-free guidance; twice the time.")
@click.option("--image", type=PICTURE, help="Start from this picture.")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    help="How much of it to paint anew.  [default: 0.6; where a hole is filled: 1]",
)
@click.option("--mask", type=PICTURE, help="Paint only where this picture is white.")
@click.option("--outpaint", type=Margins(), metavar="L,T,R,B", help="Extend --image by so many pixels.")
@click.option("--paste", is_flag=True, help="Put the picture's own pixels back where the mask is black.")
@click.option("--reference", type=PICTURE, multiple=True, help="Follow this picture; any number of times.")
@click.option(
    "--no-auto-resize",
    "auto_resize",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Keep the sizes of reference pictures.",
)
@click.option("--control", type=PICTURE, help="The control picture of a bundle that needs one.")
@click.option("--canny", type=PICTURE, help="Make the control picture from the edges of this one.")
@click.option(
    "--jobs",
    type=PICTURE,
    metavar="FILE",
    help="Paint every line of a JSONL file instead; goes on where it stopped.",
)
@of_machine
@click.pass_context
def generate(
    ctx: click.Context,
    bundle: Path,
    prompts: tuple[str, ...],
    output: Path,
    jobs: Path | None,
    **options: Any,
) -> None:
    """Paint every PROMPT with BUNDLE, a folder that flux-export build has written.

    The prompt - reads prompts from standard input, one per line.
    """
    if not prompts and jobs is None:
        raise click.UsageError("Missing argument 'PROMPT...'.")
    if jobs is not None:
        if options["preview"] or options["preview_every"]:
            raise click.UsageError("--preview is of one command's pictures, not of --jobs.")
        _expect_alone(ctx, prompts)
    texts = [] if jobs else _read(prompts)

    from flux_trt.runtime import session
    from flux_trt.runtime.tasks.shortcuts import expanded

    machine = session.split(options)
    if jobs is not None:
        session.paint_jobs(bundle, jobs, machine)
        return

    def ask(manifest: Manifest) -> Request:
        from flux_trt.runtime.tasks.request import Request

        return Request.of(manifest, texts, **expanded(manifest, options))

    session.paint(bundle, output, machine, ask)


@main.command(short_help="Edit a picture by what it shows and should show.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image", type=PICTURE, required=True, help="The picture.")
@click.option("--source", metavar="PROMPT", required=True, help="What it shows.")
@click.option(
    "--target", metavar="PROMPT", required=True, multiple=True, help="What to show; any number of times."
)
@of_pictures
@click.option("--steps", type=click.IntRange(min=1), default=28, show_default=True, help="Of the schedule.")
@click.option(
    "--n-max",
    type=click.IntRange(min=1),
    default=24,
    show_default=True,
    help="How many of the last steps are walked; fewer keep more of the picture.",
)
@click.option(
    "--n-min",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How many of those sample plainly; more let shapes change more.",
)
@click.option(
    "--n-avg", type=click.IntRange(min=1), default=1, show_default=True, help="Noises averaged per step."
)
@click.option("--source-guidance", type=float, default=1.5, show_default=True)
@click.option("--target-guidance", type=float, default=5.5, show_default=True)
@of_machine
def edit(bundle: Path, output: Path, **options: Any) -> None:
    """Edit a picture with BUNDLE by FlowEdit: no inversion, no mask, two prompts."""
    from flux_trt.runtime import session

    machine = session.split(options)

    def ask(manifest: Manifest) -> Request:
        from flux_trt.runtime.tasks.request import Request

        return Request.of_edit(manifest, **options)

    session.paint(bundle, output, machine, ask)


def _expect_alone(ctx: click.Context, prompts: tuple[str, ...]) -> None:
    """With --jobs, what is painted stands in the file."""
    machine = {
        "device",
        "backend",
        "memory",
        "tile",
        "as_json",
        "no_check",
        "bundle",
        "jobs",
        "threads",
        "progress",
    }
    given = [
        parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name not in machine
        and ctx.get_parameter_source(parameter.name or "") == click.core.ParameterSource.COMMANDLINE
    ]
    if prompts or given:
        raise click.UsageError(
            f"{'PROMPT' if prompts else given[0]} stands in the file of --jobs, not beside it."
        )


def _read(prompts: tuple[str, ...]) -> list[str]:
    """The prompts, with the lines of standard input in the place of "-"; blank lines are no prompts."""
    found: list[str] = []
    for prompt in prompts:
        found += filter(str.strip, sys.stdin.read().splitlines()) if prompt == "-" else [prompt]
    if not found:
        raise RequestError("standard input has no prompt; give one per line")
    return found
