"""Options that the commands of `flux-bench` share, and their types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class Sizes(click.ParamType):
    """Widths and heights in pixels, with commas between sizes."""

    name = "WxH,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split "64x64,128x96"."""
        found = []
        for part in str(value).lower().split(","):
            width, cross, height = part.partition("x")
            if not (cross and width.isdecimal() and height.isdecimal()):
                self.fail(f"{part!r} is not WIDTHxHEIGHT, such as 1024x768", param, ctx)
            found.append((int(width), int(height)))
        return found


BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
DEVICE = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
STEPS = click.option(
    "--steps", type=click.IntRange(min=1), help="How often the denoiser runs.  [default: the bundle's]"
)
BATCH = click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Pictures painted at once."
)
THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="That a CPU computes on, ours and the peers'.  [default: each one's own choice]",
)
BACKEND = click.option("--backend", default="onnxruntime", show_default=True, help="As flux-run's.")
OUT = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="bench",
    show_default=True,
    help="Folder of the results; report.html and report.md show all that are there.",
)
