"""The header of a results file."""

from __future__ import annotations

import os

from flux_trt.bench.machine import describe
from flux_trt.bench.schema import About, BundleId
from flux_trt.runtime.bundle.bundle import Bundle


def about(bundle: Bundle) -> About:
    """Of a measurement that starts now."""
    manifest = bundle.manifest
    precision = {
        str(name): f"{stage.precision} on {stage.base}" if stage.base else stage.precision
        for name, stage in manifest.stages.items()
    }
    return About(
        **describe(),
        load_average=round(os.getloadavg()[0], 2),
        bundle=BundleId(
            name=bundle.root.resolve().name,
            digest=bundle.digest,
            variant=manifest.variant,
            precision=precision,
        ),
    )
