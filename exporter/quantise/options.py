"""The command line's words for fp8 and its like, of `build` and of `calibrate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from flux_trt.runtime.bundle.manifest import QUANTISED, Precision, StageName
from flux_trt.runtime.options import Size

Command = TypeVar("Command", bound=Callable[..., Any])

_FP8 = (
    click.option(
        "--base",
        type=click.Choice(["bf16", "fp16", "fp32"]),
        help="Where linear layers are quantised (fp8, int8, w8a16, w4a16, nvfp4): the precision of all "
        "else.  [default: bf16]",
    ),
    click.option(
        "--fp8-attention", is_flag=True, help="With fp8 or nvfp4: queries, keys and values in fp8, too."
    ),
    click.option(
        "--calibration",
        type=click.Path(path_type=Path),
        help="With fp8, int8 or nvfp4: a file of flux-export calibrate, the same for each.  [default: "
        "calibrate, and keep it beside --out]",
    ),
)
_CALIBRATION = (
    click.option(
        "--prompts",
        type=click.Path(path_type=Path),
        help="One prompt a line.  [default: a built-in list of many kinds]",
    ),
    click.option(
        "--jobs",
        type=click.Path(path_type=Path),
        help="Pictures to paint from: JSON lines as for flux-run --jobs, each with a prompt and image, mask, "
        "control or reference; --size, --steps and --guidance are for lines that say none.",
    ),
    click.option(
        "--size", type=Size(), help="In pixels.  [default: the picture's, else the model's, at most 512x512]"
    ),
    click.option("--steps", type=click.IntRange(1), help="[default: the variant's, at most 12]"),
    click.option("--guidance", type=float, help="[default: the variant's]"),
    click.option("--variant", help="As for build."),
    click.option("--revision", help="As for build."),
    click.option(
        "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="To run on."
    ),
)


def fp8_options(command: Command) -> Command:
    """How `build` quantises."""
    return _with(command, _FP8)


def kinds_of(
    precision: Precision,
    stages: Sequence[tuple[StageName, Precision]],
    base: Precision | None,
    attention: bool,
    calibration: Path | None,
) -> list[tuple[Precision, Precision | None]]:
    """What is asked for: precisions, with the base of those that have one.

    Args:
        precision: of the bundle.
        stages: and the precisions of single ones.
        base, attention, calibration: as given; None and False: not given.

    Raises:
        click.UsageError: an option that says something of a precision that is not asked for.
    """
    asked = list(dict.fromkeys([precision, *(each for _, each in stages)]))
    for option, given, of in (
        ("--base", base is not None, QUANTISED),
        ("--calibration", calibration is not None, ("fp8", "int8", "nvfp4")),
        ("--fp8-attention", attention, ("fp8", "nvfp4")),
    ):
        if given and not set(of) & set(asked):
            raise click.UsageError(f"{option} goes with --precision {', '.join(of[:-1])} or {of[-1]}.")
    return [(each, (base or "bf16") if each in QUANTISED else None) for each in asked]


def calibration_options(command: Command) -> Command:
    """What `calibrate` paints."""
    return _with(command, _CALIBRATION)


def _with(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
