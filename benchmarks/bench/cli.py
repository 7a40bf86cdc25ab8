"""`flux-bench`: latency, memory and quality that anyone can reproduce."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from flux_trt.bench.load_commands import rows, serve
from flux_trt.bench.options import BACKEND, BATCH, BUNDLE, DEVICE, OUT, STEPS, THREADS, Sizes
from flux_trt.runtime.cli import Commands as RunCommands
from flux_trt.runtime.options import version_options

if TYPE_CHECKING:
    from flux_trt.bench.schema import Result
    from flux_trt.runtime.backends.protocols import Device
    from flux_trt.runtime.bundle.bundle import Bundle

# numpy, pydantic, torch and matplotlib are imported inside the commands: --help answers at once.

PEERS = ("diffusers", "compile", "onnx-export", "openvino")
RATES = ("fp32", "bf16", "fp16")
OVER = ("tokens", "batch", "text", "steps", "references")


class Commands(RunCommands):
    """As flux-run's, with the packages of pages and peers."""

    extras: ClassVar = {"": "export", "matplotlib": "bench"}


class Sweeps(click.ParamType):
    """Names of what grows, with commas between them."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split "tokens,batch"."""
        wanted = str(value).split(",")
        if strange := [name for name in wanted if name not in OVER]:
            self.fail(f"{strange[0]!r} is not one of {', '.join(OVER)}", param, ctx)
        return wanted


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@version_options("flux-bench")
def main() -> None:
    """Measure a FLUX bundle: latency, memory and quality, beside other ways to run the same checkpoint."""


@main.command(short_help="Time pictures, stages and starts, beside peers.")
@BUNDLE
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=["onnxruntime"],
    show_default=True,
    help="What runs our stages; may be given several times.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(PEERS),
    help="Another way to run the checkpoint, in turns with ours; may be given several times.",
)
@click.option(
    "--checkpoint", help="The peers' diffusers folder or hub id.  [default: what BUNDLE was built from]"
)
@click.option("--baseline", help="Whose time the ratios are of.  [default: diffusers, else the first]")
@DEVICE
@click.option(
    "--sizes",
    type=Sizes(),
    metavar="WxH,...",
    help="Widths and heights, each a case.  [default: the bundle's size]",
)
@STEPS
@BATCH
@THREADS
@click.option("--guidance", type=float, help="How closely to follow the prompt.  [default: the bundle's]")
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with one prompt a line; they go round.  [default: four of our own]",
)
@click.option(
    "--warmup", type=click.IntRange(min=0), default=2, show_default=True, help="Rounds not counted."
)
@click.option("--runs", type=click.IntRange(min=2), default=10, show_default=True, help="Rounds counted.")
@click.option(
    "--starts", type=click.IntRange(min=0), default=3, show_default=True, help="Cold starts of each."
)
@click.option(
    "--checker",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Python file whose check(picture, prompt) gives a report with `all_right`.",
)
@click.option(
    "--scored",
    type=click.IntRange(min=0),
    default=0,
    help="Pictures to judge at least; those beyond the timed ones are not timed.",
)
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=300,
    show_default=True,
    help="Seconds to spend at most on taking turns again that others on the machine have slowed.",
)
@click.option("--allow-noise", is_flag=True, help="Report times that spread widely, marked as noisy.")
@OUT
def run(
    bundle: Path,
    backends: tuple[str, ...],
    peers: tuple[str, ...],
    checkpoint: str | None,
    baseline: str | None,
    device: Device,
    sizes: list[tuple[int, int]] | None,
    steps: int | None,
    batch: int,
    threads: int | None,
    guidance: float | None,
    prompts: Path | None,
    warmup: int,
    runs: int,
    starts: int,
    checker: Path | None,
    scored: int,
    patience: float,
    allow_noise: bool,
    out: Path,
) -> None:
    """Time BUNDLE on each backend and each peer, in turns, on the same prompts and seeds.

    Peers: `diffusers` is FluxPipeline as it is, `compile` is that with torch.compile, `onnx-export` and
    `openvino` are its modules through torch.onnx.export and onnxruntime, and through OpenVINO.
    """
    from flux_trt.bench import run as runner
    from flux_trt.bench.case import job as job_of
    from flux_trt.bench.job import OURS
    from flux_trt.bench.quality import checker as load_checker
    from flux_trt.runtime.progress import bars

    opened, asked = _open(bundle), _prompts(prompts)
    jobs = [
        job_of(opened, size, steps, batch, guidance, device, checkpoint, threads, asked)
        for size in sizes or [_default_size(opened)]
    ]
    painters = [*(OURS + name for name in dict.fromkeys(backends)), *dict.fromkeys(peers)]
    if baseline is not None and baseline not in painters:
        raise click.BadParameter(f"{baseline!r} is not one of {', '.join(painters)}", param_hint="--baseline")
    plan = runner.Plan(
        jobs=jobs,
        painters=painters,
        prompts=asked,
        warmup=warmup,
        runs=runs,
        starts=starts,
        scored=scored,
        baseline=baseline,
        allow_noise=allow_noise,
        patience=patience,
    )
    check = load_checker(checker) if checker else None
    with bars() as progress:
        found = runner.measure(opened, plan, check, progress)
    _report(out, "run.json", found)


@main.command(short_help="Judge whether B is slower or worse than A.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--bound",
    type=click.FloatRange(min=1),
    default=1.05,
    show_default=True,
    help="A ratio of times up to this is no regression.",
)
@click.option(
    "--relative-to",
    metavar="NAME",
    help="Compare shares of this painter's times, which hold from machine to machine better than times.",
)
@click.option("--anyway", is_flag=True, help="Compare other hardware, bundles or cases as well.")
@click.pass_context
def compare(
    ctx: click.Context, a: Path, b: Path, bound: float, relative_to: str | None, anyway: bool
) -> None:
    """Judge the run.json B against A, and exit 1 when B is slower than the bound allows, or paints worse."""
    from flux_trt.bench.compare import compare as judge
    from flux_trt.bench.schema import Run, load
    from flux_trt.bench.tables import verdicts

    found = judge(load(a, Run), load(b, Run), bound, anyway, relative_to)
    click.echo(verdicts(found))
    if any(each.regression for each in found):
        ctx.exit(1)


@main.command(short_help="How near each stage comes to the machine's ceilings.")
@BUNDLE
@BACKEND
@DEVICE
@click.option("--size", type=Sizes(), metavar="WxH", help="Width and height.  [default: the bundle's]")
@STEPS
@BATCH
@click.option(
    "--warmup", type=click.IntRange(min=0), default=2, show_default=True, help="Pictures not counted."
)
@click.option("--runs", type=click.IntRange(min=1), default=10, show_default=True, help="Pictures profiled.")
@click.option(
    "--rate",
    type=click.Choice(RATES),
    help="Whose matrix rate is the ceiling, for a backend with its own type.  [default: the stage's]",
)
@click.option("--allow-noise", is_flag=True, help="Report stages that beat the measured matrix rate.")
@OUT
def roofline(
    bundle: Path,
    backend: str,
    device: Device,
    size: list[tuple[int, int]] | None,
    steps: int | None,
    batch: int,
    warmup: int,
    runs: int,
    rate: str | None,
    allow_noise: bool,
    out: Path,
) -> None:
    """Count each stage's FLOPs and bytes, and compare its time with what the machine can do."""
    from flux_trt.bench import roofline as measured
    from flux_trt.bench.case import job as job_of
    from flux_trt.runtime.backends.connect import connect

    opened = _open(bundle)
    if size is not None and len(size) != 1:
        raise click.BadParameter("give one size", param_hint="--size")
    job = job_of(opened, size[0] if size else _default_size(opened), steps, batch, None, device, None)
    where = connect(backend, device, opened, check=False).device
    found = measured.measure(
        opened, backend, where, job, runs=runs, warmup=warmup, rate=rate, allow_noise=allow_noise
    )
    _report(out, "roofline.json", found)


@main.command(short_help="Cost against tokens, batch, text and steps.")
@BUNDLE
@BACKEND
@DEVICE
@click.option(
    "--over", type=Sweeps(), default=",".join(OVER), show_default=True, help="What grows, one curve each."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=120.0,
    show_default=True,
    help="For each curve; one that is not done by then ends there, and says so.",
)
@THREADS
@OUT
def scaling(
    bundle: Path,
    backend: str,
    device: Device,
    over: list[str],
    seconds: float,
    threads: int | None,
    out: Path,
) -> None:
    """Run the denoiser's graph on growing shapes, and fit cost = c * x ** exponent."""
    from flux_trt.bench import scaling as measured
    from flux_trt.runtime.backends.connect import connect
    from flux_trt.runtime.progress import bars

    opened = _open(bundle)
    connected = connect(backend, device, opened, check=False, threads=threads)
    with bars() as progress:
        found = measured.measure(opened, connected, backend, over, seconds, progress, threads)
    _report(out, "scaling.json", found)


@main.command(short_help="Write the page of results again.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(folder: Path) -> None:
    """Write report.html and report.md of the results in FOLDER."""
    from flux_trt.bench.page import write_all

    write_all(folder)
    click.echo(folder / "report.html")


def _open(bundle: Path) -> Bundle:
    from flux_trt.runtime.bundle.bundle import Bundle

    return Bundle.open(bundle)


def _default_size(bundle: Bundle) -> tuple[int, int]:
    return bundle.manifest.defaults.width, bundle.manifest.defaults.height


def _prompts(path: Path | None) -> list[str]:
    from flux_trt.bench.job import PROMPTS
    from flux_trt.runtime.errors import RequestError
    from flux_trt.runtime.lines import lines

    if path is None:
        return list(PROMPTS)
    try:
        found = lines(path.read_bytes())
    except (OSError, ValueError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else fault
        raise RequestError(f"cannot read {path} ({why})") from None
    if not found:
        raise RequestError(f"{path} has no prompt; give one per line")
    return found


def _report(out: Path, name: str, found: Result) -> None:
    """Write the results, and the pages of all that lies there."""
    from flux_trt.bench.page import write_all
    from flux_trt.bench.schema import save
    from flux_trt.bench.tables import markdown

    out.mkdir(parents=True, exist_ok=True)
    save(out / name, found)
    write_all(out)
    click.echo(markdown(found))


if __name__ == "__main__":
    main()


main.add_command(serve)
main.add_command(rows)
