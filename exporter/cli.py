"""flux-export: build, inspect and verify bundles."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar, get_args

import click

from flux_trt.exporter.engines.options import (
    FLAVOURS,
    NAMES,
    Capability,
    build_engines,
    check_targets,
    engine_options,
)
from flux_trt.exporter.families.catalogue import STAGES, VARIANTS
from flux_trt.exporter.options import CASES, beside_options, there
from flux_trt.exporter.quantise.options import calibration_options, fp8_options, kinds_of
from flux_trt.runtime.bundle.manifest import Precision
from flux_trt.runtime.cli import Commands as RunCommands
from flux_trt.runtime.options import Size, version_options

PRECISIONS = get_args(Precision)


class Commands(RunCommands):
    """As flux-run's, with the packages of the exporter."""

    extras: ClassVar = {"": "export"}


TRACES = ("torch", "onnx", "onnx-ir", "onnxscript", "transformers", "diffusers", "safetensors")


def _refuse_here(*libraries: str) -> None:
    """Refuse another system than Linux, and libraries that are too old or too new."""
    from flux_trt.runtime.minimums import misfit

    if sys.platform != "linux":
        raise click.ClickException(
            "this command runs on Linux only; build there (WSL is one), and paint with the bundle anywhere"
        )
    if wrong := misfit(*libraries):
        raise click.ClickException(wrong)


class _StageList(click.ParamType):
    name = "stage,..."

    def __init__(self, branched: bool = False) -> None:
        """Of stages as they are built, and where `branched` also of those with branches for LoRAs."""
        self._stages = [*STAGES, *(f"{name}_lora" for name in STAGES if branched)]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        wanted = value.split(",") if isinstance(value, str) else list(value)
        if strange := [stage for stage in wanted if stage not in self._stages]:
            self.fail(f"{strange[0]!r} is not one of {', '.join(STAGES)}", param, ctx)
        return [stage for stage in self._stages if stage in wanted]


class _StagePrecision(click.ParamType):
    name = "stage=precision"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        stage, _, precision = value.partition("=")
        if stage not in STAGES or precision not in PRECISIONS:
            self.fail(f"{value!r} is not a stage and a precision such as t5=bf16", param, ctx)
        return stage, precision


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@version_options("flux-export")
def main() -> None:
    """Turn a FLUX checkpoint into a bundle of ONNX graphs that flux-run paints with."""


@main.command(short_help="Build a bundle.", epilog=CASES)
@click.argument("checkpoint")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The bundle to write.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Of the weights and matrix products; of w8a16 and w4a16 of the weights alone.",
)
@click.option(
    "--stage-precision",
    "stage_precisions",
    type=_StagePrecision(),
    multiple=True,
    help="Another precision for one stage. By default an fp16 bundle keeps T5 and the VAE in fp32.",
)
@fp8_options
@click.option(
    "--stages", type=_StageList(), help="Build only these stages.  [default: all that the model has]"
)
@click.option(
    "--variant", type=click.Choice(VARIANTS), help="Chooses among variants whose tensors are alike."
)
@beside_options
@click.option(
    "--lora-rank",
    type=click.IntRange(1, 1024),
    metavar="RANK",
    help="Take LoRAs of up to this rank at run time, too: more graphs, on the same weights.",
)
@click.option("--revision", help="Of a hub id.")
@click.option(
    "--link/--no-link",
    default=True,
    show_default=True,
    help="Use weights where they lie, by hard links, when they need no change.",
)
@click.option(
    "--inline",
    is_flag=True,
    help="Graphs of standard operators alone, for tools that know no functions of a model's own.",
)
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", *FLAVOURS]),
    default="onnxruntime",
    show_default=True,
    help="Also build engines for one of the TensorRTs; onnxruntime needs none.",
)
@click.option(
    "--dry-run", is_flag=True, help="Only say what would be built, from what, how large, and what is wrong."
)
@engine_options
def build(
    checkpoint: str,
    out: Path,
    stage_precisions: Any,
    base: Any,
    fp8_attention: bool,
    calibration: Path | None,
    backend: Any,
    dry_run: bool,
    **options: Any,
) -> None:
    """Build a bundle from CHECKPOINT.

    CHECKPOINT is a hub id, a diffusers folder, or a single file: safetensors or GGUF, with Black Forest
    Labs' or diffusers' names, also ComfyUI's all-in-one files. What it lacks is given with --text-encoders,
    --clip, --t5, --vae and --tokenizers. An older bundle at --out is replaced once the new one is complete,
    and stages that would not change are reused.
    """
    _refuse_here(*TRACES, *(() if backend == "onnxruntime" else ("polygraphy",)))
    from flux_trt.exporter.build import build as build_bundle
    from flux_trt.exporter.quantise.e4m3 import Fp8
    from flux_trt.runtime.progress import bars

    chosen = {name: options.pop(name) for name in NAMES}
    kinds = kinds_of(options["precision"], stage_precisions, base, fp8_attention, calibration)
    if backend != "onnxruntime":
        check_targets(backend, chosen, kinds, whole=not options["stages"])
    fp8 = Fp8(base=base or "bf16", attention=fp8_attention, calibration=calibration)
    options["stage_precisions"] = dict(stage_precisions)
    if dry_run:
        _look(checkpoint, out, backend != "onnxruntime", fp8=fp8, **options)
        return
    with bars(of_bytes=True) as progress:
        found = build_bundle(
            checkpoint,
            out,
            fp8=fp8,
            tell=lambda line: print(line, file=sys.stderr),  # click.echo would write over the bars
            progress=progress,
            **options,
        )
    size = sum(file.bytes for file in found.files.values())
    click.echo(f"{out}: {len(found.stages)} stages, {size / 1e6:.1f} MB")
    if backend != "onnxruntime":
        build_engines(out, backend, options["stages"] or list(found.stages), chosen)


def _look(checkpoint: str, out: Path, engines: bool, **options: Any) -> None:
    """Say what a build would do, and exit 1 if it could not be done."""
    from flux_trt.exporter.survey import survey
    from flux_trt.exporter.survey_view import show_survey

    options.pop("inline")  # sizes are those of the weights, whatever the graphs say
    found = survey(checkpoint, out, **options)
    show_survey(found, engines)
    for fault in found.faults:
        click.echo(f"Error: {fault}", err=True)
    if found.faults:
        raise click.exceptions.Exit(1)
    click.echo("nothing is wrong; nothing was written")


@main.command(short_help="Find the ranges that fp8, int8 and nvfp4 need.")
@click.argument("checkpoint")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="The calibration to write, JSON."
)
@beside_options
@calibration_options
def calibrate(checkpoint: str, out: Path, jobs: Path | None, **options: Any) -> None:
    """Paint prompts with CHECKPOINT and record how large the inputs of its layers are.

    A model that paints from pictures (Fill, Canny, Depth; Kontext where it shall follow some) gets them with
    --jobs.

    `flux-export build --calibration FILE` takes the result. The checkpoint is read block by block, in every
    step, so it may be larger than memory. A run that was stopped goes on where it was.
    """
    _refuse_here(*TRACES)
    from flux_trt.exporter.quantise.ranges import calibrate_checkpoint
    from flux_trt.runtime.progress import bars

    if jobs is not None:
        from flux_trt.exporter.pictured import Jobs

        asked = {name: options.pop(name) for name in ("size", "steps", "guidance")}
        options["pictures"] = Jobs(jobs, **asked)
    with bars(of_bytes=True) as progress:
        found = calibrate_checkpoint(
            checkpoint, out, tell=lambda line: print(line, file=sys.stderr), progress=progress, **options
        )
    seen = sum(len(layers) for layers in found.layers.values())
    click.echo(f"{out}: {seen} inputs, {len(found.settings.prompts)} prompts, {found.settings.steps} steps")


@main.command(short_help="Build TensorRT engines into a bundle.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend",
    type=click.Choice([*FLAVOURS, "onnxruntime"]),
    required=True,
    help="Which TensorRT; onnxruntime with --for triton, for the graphs as they are.",
)
@click.option(
    "--stages",
    type=_StageList(branched=True),
    help="Build only these stages' engines; NAME_lora is one with branches for LoRAs.  [default: all]",
)
@click.option(
    "--for",
    "other",
    type=click.Choice(["triton", "trtexec"]),
    help="A model repository for Triton Inference Server at --out; or only say the commands of NVIDIA's own "
    "builder, on stdout.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The model repository to write.")
@engine_options
def engines(
    bundle: Path, backend: Any, stages: list[Any] | None, other: str | None, out: Path | None, **chosen: Any
) -> None:
    """Build TensorRT engines of BUNDLE's graphs into it.

    Needs neither the checkpoint nor PyTorch, so a bundle that was exported elsewhere gets its engines on the
    machine that will run them. Engines that are there already are kept.
    """
    if out is not None and other != "triton":
        raise click.UsageError("--out is of --for triton; engines go into the bundle, or to --engines")
    if other == "trtexec":
        from flux_trt.exporter.others import commands

        click.echo("\n".join(commands(bundle, backend, stages, chosen)))
        return
    if backend != "onnxruntime":
        _refuse_here("polygraphy")
    if other == "triton":
        from flux_trt.exporter.others import repository

        click.echo(f"{out}: {', '.join(repository(bundle, backend, stages, chosen, out))}")
        return
    if backend == "onnxruntime":
        raise click.ClickException("onnxruntime needs no engines; give --backend tensorrt or tensorrt-rtx")
    from flux_trt.runtime.bundle import manifest

    build_engines(bundle, backend, stages or list(manifest.read(bundle).stages), chosen)


@main.command(short_help="Show what is in a bundle, a checkpoint or a LoRA.")
@click.argument("what", metavar="BUNDLE|CHECKPOINT|LORA")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option(
    "--engines",
    "counted",
    is_flag=True,
    help="Of a bundle: what TensorRT-RTX makes of each stage, in kernels and bytes of a run, without a GPU.",
)
@click.option("--stages", type=_StageList(), help="With --engines: only these stages.  [default: all]")
@click.option("--sm", "capability", type=Capability(), help="With --engines: for which GPU.  [default: 8.9]")
@click.option("--size", type=Size(), help="With --engines: of the picture.  [default: the bundle's]")
def inspect(what: str, as_json: bool, counted: bool, **chosen: Any) -> None:
    """Show what is in a bundle: stages, dtypes, shapes, bytes, engines, provenance.

    With --engines each stage is built for one picture, the builder's report is read, and nothing is kept.

    Of a checkpoint, in any form that build takes, show its layout, family, variant and parts, and what it
    lacks. Of a LoRA, show its form, kind and rank, and how many modules of which parts it changes.
    """
    from flux_trt.runtime.bundle import manifest
    from flux_trt.runtime.bundle.engine import engines

    bundle = Path(what)
    given = sorted(name for name, value in chosen.items() if value is not None)
    if given and not counted:
        raise click.UsageError(f"--{given[0].replace('capability', 'sm')} goes with --engines.")
    if counted:
        _count(bundle, as_json, **chosen)
        return
    if not (bundle / manifest.NAME).is_file():
        _inspect_checkpoint(there(what), as_json)
        return
    found = manifest.read(bundle)
    if as_json:
        built = [engine.model_dump(mode="json") for _, engine in engines(bundle)]
        whole = {**found.model_dump(mode="json"), "engines": built}
        click.echo(json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False))
    else:
        from flux_trt.exporter.inspect import show

        show(bundle, found)


def _count(
    bundle: Path,
    as_json: bool,
    stages: list[Any] | None,
    capability: str | None,
    size: tuple[int, int] | None,
) -> None:
    """What TensorRT-RTX makes of a bundle."""
    _refuse_here("polygraphy")
    from flux_trt.exporter.engines.count import count
    from flux_trt.exporter.inspect import show_counts
    from flux_trt.runtime.progress import bars

    sm = capability or "8.9"
    with bars() as progress:
        found = dict(count(bundle, stages, sm, size, progress))
    if as_json:
        told = {name: each.model_dump(mode="json") for name, each in found.items()}
        click.echo(json.dumps({"sm": sm, "stages": told}, indent=2))
    else:
        show_counts(found, sm)


def _inspect_checkpoint(checkpoint: str, as_json: bool) -> None:
    from flux_trt.exporter.families.recognise import recognise_lora
    from flux_trt.exporter.survey import survey
    from flux_trt.exporter.survey_view import show_checkpoint, show_lora

    if (lora := recognise_lora(Path(checkpoint))) is not None:
        if as_json:
            click.echo(json.dumps({"family": lora[1], **lora[0].facts}, indent=2, ensure_ascii=False))
        else:
            show_lora(*lora)
        return
    found = survey(checkpoint, None)
    if not found.parts:
        raise click.ClickException(f"{checkpoint} is no bundle; {found.faults[0]}")
    if as_json:
        click.echo(json.dumps(found.facts(), indent=2, ensure_ascii=False))
    else:
        show_checkpoint(found)


@main.command(short_help="Compare a bundle with diffusers.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--checkpoint", help="Where the checkpoint is now, if not where it was at the build.")
@beside_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def verify(bundle: Path, as_json: bool, **options: Any) -> None:
    """Compare every stage of BUNDLE with diffusers and transformers in fp32; exit 1 when one is off.

    The reference is loaded part by part, in fp32: verifying the 12 B transformer takes 48 GB of memory.
    """
    _refuse_here(*TRACES)
    from flux_trt.exporter.inspect import show_rows
    from flux_trt.exporter.verify.verify import verify as verify_bundle

    rows = list(verify_bundle(bundle, **options))
    if as_json:
        click.echo(json.dumps({"rows": [{**vars(row), "passed": row.passed} for row in rows]}, indent=2))
    else:
        show_rows(rows)
    if failed := [row for row in rows if not row.passed]:
        what = "build the bundle again, or report it with this table"
        if failed[0].precision in ("fp8", "int8", "nvfp4"):
            what = (
                "its calibration may be too small or of other prompts: make a larger one with flux-export "
                "calibrate and build again, or report it with this table"
            )
        raise click.ClickException(
            f"{failed[0].stage} {failed[0].output} is off by {failed[0].error:.1e}; {what}"
        )


if __name__ == "__main__":
    sys.exit(main())
