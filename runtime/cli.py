"""`flux-run`: paint with a bundle from the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from flux_trt.runtime import signals, warned
from flux_trt.runtime.errors import FluxTrtError, RequestError
from flux_trt.runtime.lines import lines
from flux_trt.runtime.options import PICTURE, Margins, of_machine, of_pictures, of_schedule, version_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from flux_trt.runtime.bundle.bundle import Bundle
    from flux_trt.runtime.tasks.request import Request

# numpy, Pillow and onnxruntime are imported inside the commands: --help answers at once.


class Commands(click.Group):
    """A group whose expected faults are one line and exit code 1; bugs keep their traceback."""

    extras: ClassVar[Mapping[str, str]] = {}
    """The extra that brings a package; "" stands for those not named. Without either it is a bug."""

    def main(self, *arguments: Any, **more: Any) -> Any:
        """Run as a program: warnings are lines, and signals end it when all is tidy, with their own code."""
        try:
            with signals.heard(), warned.lines():
                return super().main(*arguments, **more)
        except signals.Stopped as stopped:
            print(stopped, file=sys.stderr)
            signals.die(stopped.number)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with faults(self.extras):
            return super().invoke(ctx)


@contextmanager
def faults(extras: Mapping[str, str]) -> Iterator[None]:
    """Expected faults are one line and exit code 1; a package that is missing is named with its extra."""
    try:
        yield
    except FluxTrtError as fault:
        raise click.ClickException(str(fault)) from None
    except ModuleNotFoundError as fault:
        name = fault.name or ""
        extra = extras.get(name, extras.get(""))
        if extra is None or name.startswith("flux_trt"):
            raise
        raise click.ClickException(
            f"{name} is not installed; install flux_trt with its extra: flux_trt[{extra}]"
        ) from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@version_options("flux-run")
def main() -> None:
    """Paint with a FLUX bundle, without PyTorch."""


@main.command(short_help="Paint prompts, from noise or from pictures.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@of_pictures
@click.option(
    "--steps", type=click.IntRange(min=1), help="How many steps the schedule has.  [default: the bundle's]"
)
@of_schedule
@click.option("--guidance", type=float, help="How closely to follow the prompt.  [default: the bundle's]")
@click.option(
    "--prompt-2",
    metavar="PROMPT",
    multiple=True,
    help="What the second text encoder (T5) reads, and only it: one for all, or one for each PROMPT.",
)
@click.option(
    "--boxes",
    type=PICTURE,
    metavar="FILE",
    help="Where things are to be, a JSON list; of bundles that know boxes (docs/tasks.md).",
)
@click.option("--negative", metavar="PROMPT", help="What to keep away from; needs --true-cfg.")
@click.option("--negative-2", metavar="PROMPT", help="What the second text encoder reads of it.")
@click.option("--true-cfg", type=float, help="Scale of true classifier-free guidance; twice the time.")
@click.option("--image", type=PICTURE, help="Start from this picture.")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    help="How much of it to paint anew.  [default: 0.6; where a hole is filled: 1]",
)
@click.option("--mask", type=PICTURE, help="Paint only where this picture is white.")
@click.option(
    "--mask-blur", type=click.FloatRange(min=0), metavar="PX", help="Soften the mask's edges, for --paste."
)
@click.option(
    "--mask-crop",
    type=click.IntRange(min=0),
    metavar="PAD",
    help="Paint only what the mask has and PAD pixels around, at --size, and put it back.",
)
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
@click.option(
    "--ray",
    is_flag=True,
    help="Paint --jobs with Ray, on the machines of RAY_ADDRESS, else with all GPUs of this one.",
)
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    help="Of the pipeline, for --ray.  [default: one for each GPU; on CPUs one]",
)
@of_machine
@click.pass_context
def generate(
    ctx: click.Context,
    bundle: Path,
    prompts: tuple[str, ...],
    output: Path,
    jobs: Path | None,
    again: Path | None,
    ray: bool,
    replicas: int | None,
    **options: Any,
) -> None:
    """Paint every PROMPT with BUNDLE, a folder that flux-export build has written.

    The prompt - reads prompts from standard input, one per line.
    """
    options["prompt_2"] = options["prompt_2"] or None
    if not prompts and jobs is None and again is None:
        raise click.UsageError("Missing argument 'PROMPT...'.")
    if ray and jobs is None:
        raise click.UsageError("--ray paints the file of --jobs; give one.")
    if replicas is not None and not ray:
        raise click.UsageError("--replicas is for --ray.")
    if jobs is not None:
        if options["preview"] or options["preview_every"]:
            raise click.UsageError("--preview is of one command's pictures, not of --jobs.")
        _expect_alone(ctx, prompts)
    options["prompt"] = _read(prompts) if prompts else None

    from flux_trt.runtime import session

    if jobs is not None:
        from flux_trt.runtime.jobrun import here, paint_jobs
        from flux_trt.runtime.spread import over

        writing, batch = session.split_writing(options), options["batch"]
        way = over(replicas) if ray else here
        paint_jobs(bundle, jobs, session.split(options), writing, batch, way)
        return
    ask = _as_recorded(ctx, again, options) if again else None
    machine, writing = session.split(options), session.split_writing(options)

    def request(opened: Bundle) -> Request:
        from flux_trt.runtime.tasks.request import Request

        asked = ask(opened) if ask else options
        return Request.of(opened.manifest, asked.pop("prompt"), **asked)

    session.paint(bundle, output, machine, request, writing)


@main.command(short_help="Edit a picture by what it shows and should show.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image", type=PICTURE, help="The picture.  [required]")
@click.option("--source", metavar="PROMPT", help="What it shows.  [required]")
@click.option(
    "--target", metavar="PROMPT", multiple=True, help="What to show; any number of times.  [required]"
)
@of_pictures
@click.option("--steps", type=click.IntRange(min=1), help="Of the schedule.  [default: 28]")
@of_schedule
@click.option(
    "--n-max",
    type=click.IntRange(min=1),
    help="How many of the last steps are walked; fewer keep more of the picture.  "
    "[default: 24 of 28, that share of others]",
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
@click.pass_context
def edit(ctx: click.Context, bundle: Path, output: Path, again: Path | None, **options: Any) -> None:
    """Edit a picture with BUNDLE by FlowEdit: no inversion, no mask, two prompts."""
    for name in ("image", "source", "target"):
        if not options[name] and again is None:
            raise click.UsageError(f"Missing option '--{name}'.")

    from flux_trt.runtime import session

    ask = _as_recorded(ctx, again, options) if again else None
    machine, writing = session.split(options), session.split_writing(options)

    def request(opened: Bundle) -> Request:
        from flux_trt.runtime.tasks.request import Request

        return Request.of_edit(opened.manifest, **(ask(opened) if ask else options))

    session.paint(bundle, output, machine, request, writing)


def _as_recorded(
    ctx: click.Context, path: Path, options: dict[str, Any]
) -> Callable[[Bundle], dict[str, Any]]:
    """Take from a picture's file what is not said on the command line, and say what is.

    The machine's options are filled in at once, the others when the bundle is open.
    """
    from flux_trt.runtime.again import merged, recorded

    found = recorded(path)
    if found.command != ctx.command.name:
        raise RequestError(
            f"{path} was painted by flux-run {found.command}; use flux-run {found.command} --from"
        )
    names = {"prompt": "prompts"}
    said = {
        name: value
        for name, value in options.items()
        if ctx.get_parameter_source(names.get(name, name)) == click.core.ParameterSource.COMMANDLINE
    }
    flags = {each.name: each.opts[0] for each in ctx.command.params} | {"prompt": "the prompt"}
    options |= found.machine | {name: value for name, value in said.items() if name in found.machine}

    def ask(bundle: Bundle) -> dict[str, Any]:
        for doubt in found.doubts(bundle, said.get("backend", ""), said.get("device", "")):
            print(warned.line(doubt), file=sys.stderr)
        asked, changed = merged(found, said, options)
        for name, (now, then) in changed.items():
            click.echo(f"{flags.get(name, name)} is {now!r}; {path} has {then!r}", err=True)
        return asked

    return ask


def _expect_alone(ctx: click.Context, prompts: tuple[str, ...]) -> None:
    """With --jobs, what is painted stands in the file."""
    machine = {"device", "backend", "memory", "tile", "as_json", "no_check", "engines", "bundle", "jobs"}
    machine |= {"batch", "force", "quality", "threads", "progress", "compute", "ray", "replicas"}
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
        try:
            found += lines(sys.stdin.buffer.read()) if prompt == "-" else [prompt]
        except ValueError as fault:
            raise RequestError(f"standard input: {fault}") from None
    if not found:
        raise RequestError("standard input has no prompt; give one per line")
    return found


if __name__ == "__main__":
    main()
