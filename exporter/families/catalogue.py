"""Names of all families' stages and variants, for the command line: nothing here brings torch in."""

from __future__ import annotations

from flux_trt.exporter.families.flux1 import variants as flux1
from flux_trt.exporter.families.flux2 import variants as flux2
from flux_trt.exporter.families.flux3 import variants as flux3

STAGES = tuple(dict.fromkeys((*flux1.PARTS, *flux2.PARTS, *flux3.PARTS)))
VARIANTS = tuple(dict.fromkeys((*flux1.VARIANTS, *flux2.VARIANTS, *flux3.VARIANTS)))
