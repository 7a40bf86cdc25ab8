"""The dims that vary, of all that goes into and out of the stages."""

from __future__ import annotations

from flux_trt.runtime.bundle.manifest import Manifest
from flux_trt.runtime.tasks.request import Request


def dims_of(request: Request, manifest: Manifest, text: int | None = None) -> dict[str, int]:
    """The dims of a batch of a request, by their names in the manifest; of LoRAs' ranks, the largest.

    Args:
        request: what is asked for.
        manifest: of the bundle.
        text: tokens of the text; None: as many as there may be.
    """
    (rows, columns), window = request.grid, manifest.text
    if text is None:
        text = window.most if window else 0
    tokens, *others = (each[0] * each[1] for each in request.grids)
    rule = manifest.model.references
    kept = sum(others) if rule is not None and rule.apart else 0
    turned = kept if rule is not None and rule.enters == "input" else 0
    tokens += sum(others) - kept
    branches = manifest.adapters.branches if manifest.adapters and request.loras else ()
    return {
        "batch": min(request.batch, len(request)) * request.copies,
        "steps": request.moves,
        "text": text,
        "tokens": tokens,
        "reference": kept,
        "sequence": text + tokens + turned,
        "h": rows,
        "w": columns,
        "height": request.height,
        "width": request.width,
        **{branch.rank: branch.most for branch in branches},
    }
