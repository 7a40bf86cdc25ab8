"""Names of all families' stages and variants, for the command line: nothing here brings torch in."""

from __future__ import annotations

from flux_trt.exporter.families.flux1 import variants as flux1

STAGES = tuple(flux1.PARTS)
VARIANTS = tuple(flux1.VARIANTS)
