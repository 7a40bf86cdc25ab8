"""The command line's words for engines, shared by `build` and `engines`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from flux_trt.runtime.bundle.flavour import FlavourName
from flux_trt.runtime.bundle.manifest import Precision
from flux_trt.runtime.options import ENGINES, Size

if TYPE_CHECKING:
    from flux_trt.exporter.engines.profile import Shapes

FLAVOURS = get_args(FlavourName)


class Capability(click.ParamType):
    """8.9, 89 or sm_89."""

    name = "X.Y"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As "8.9"."""
        digits = str(value).lower().removeprefix("sm").lstrip("_").replace(".", "")
        if not digits.isdigit() or len(digits) < 2:
            self.fail(f"{value!r} is not a compute capability such as 8.9", param, ctx)
        return f"{digits[:-1]}.{digits[-1]}"


class SizeList(click.ParamType):
    """1024x1024,768x1344."""

    name = "WxH,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As pairs (width, height)."""
        if not isinstance(value, str):
            return value
        return tuple(Size().convert(part, param, ctx) for part in value.split(","))


_OPTIONS = (
    click.option(
        "--sm",
        "capabilities",
        type=Capability(),
        multiple=True,
        help="Compute capability of a GPU to build for; repeat for more.  [default: the present GPU's]",
    ),
    click.option(
        "--sizes",
        type=SizeList(),
        help="Sizes in pixels to tune for; smaller ones work too.  [default: the bundle's default size]",
    ),
    click.option(
        "--max-batch", type=click.IntRange(1), default=1, show_default=True, help="Pictures at once."
    ),
    click.option(
        "--max-references",
        type=click.IntRange(0),
        help="Reference pictures beside the painted one.  [default: 1 where the bundle follows any]",
    ),
    click.option(
        "--max-text",
        type=click.IntRange(1),
        help="Tokens of the longest prompt, where windows are as long as prompts; fewer take less memory.  "
        "[default: all that are read]",
    ),
    click.option(
        "--no-wide",
        is_flag=True,
        help="Only the listed sizes: half the time to build, and nothing else runs.",
    ),
    click.option(
        "--no-pairs",
        is_flag=True,
        help="One row a picture: no true guidance and no FlowEdit, and less time to build.",
    ),
    click.option(
        "--rope",
        type=click.Choice(["native", "plugin"]),
        default="native",
        show_default=True,
        help="TensorRT's own layers, or one fused kernel, for the norm and rotation of queries and keys.",
    ),
    click.option("--opt-level", type=click.IntRange(0, 5), help="TensorRT's optimisation level."),
    click.option(
        "--weight-streaming", is_flag=True, help="Engines that can keep part of their weights in host memory."
    ),
    click.option(
        "--timing-cache", type=click.Path(path_type=Path), help="File that TensorRT's timings are kept in."
    ),
    click.option(
        "--engines",
        "into",
        type=click.Path(path_type=Path, file_okay=False),
        envvar=ENGINES,
        show_envvar=True,
        help="The folder for the engines, of any number of bundles.  [default: engines/ in the bundle]",
    ),
    click.option("--force", is_flag=True, help="Try even if memory or disk seem too small."),
)
NAMES = (
    "capabilities",
    "sizes",
    "max_batch",
    "max_references",
    "max_text",
    "no_wide",
    "no_pairs",
    "rope",
    "opt_level",
    "weight_streaming",
    "timing_cache",
    "into",
    "force",
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_targets(
    backend: FlavourName, chosen: dict[str, Any], kinds: list[tuple[Precision, Precision | None]], whole: bool
) -> None:
    """Refuse what cannot be built for, before any work.

    Args:
        backend: whose engines.
        chosen: the options of engines.
        kinds: precisions with their bases.
        whole: all stages: of each model some stay in float32 where the others are float16.
    """
    from flux_trt.exporter.engines.engine import Options
    from flux_trt.exporter.engines.engine import check_targets as check

    others = ("sizes", "max_batch", "max_references", "max_text", "no_wide", "no_pairs", "into")
    options = {name: value for name, value in chosen.items() if name not in others}
    if whole and any("fp16" in kind for kind in kinds):
        kinds = [*kinds, ("fp32", None)]
    check(Options(flavour=backend, **options), kinds)


def build_engines(
    bundle: Path, backend: FlavourName, stages: list[Any], chosen: dict[str, Any]
) -> list[Path]:
    """Build engines as the options say; each one is told of on stderr. Their folders."""
    from flux_trt.exporter.engines.engine import Options
    from flux_trt.exporter.engines.engine import build_engines as build
    from flux_trt.runtime.progress import bars

    shapes, into = shapes_of(bundle, chosen), chosen.pop("into")
    options = Options(flavour=backend, **chosen)
    with bars() as progress:
        return build(
            bundle,
            options,
            shapes,
            stages,
            tell=lambda line: print(line, file=sys.stderr),  # click.echo would write over the bars
            progress=progress,
            into=into,
        )


def shapes_of(bundle: Path, chosen: dict[str, Any]) -> Shapes:
    """Take what makes shapes out of the options."""
    from dataclasses import replace

    from flux_trt.exporter.engines.profile import default_shapes
    from flux_trt.runtime.bundle import manifest

    wide, pairs = not chosen.pop("no_wide"), not chosen.pop("no_pairs")
    shapes = replace(
        default_shapes(manifest.read(bundle)),
        max_batch=chosen.pop("max_batch"),
        max_text=chosen.pop("max_text"),
        wide=wide,
        pairs=pairs,
    )
    sizes, references = chosen.pop("sizes"), chosen.pop("max_references")
    if sizes is not None:
        shapes = replace(shapes, sizes=sizes)
    if references is not None:
        shapes = replace(shapes, max_references=references)
    return shapes
