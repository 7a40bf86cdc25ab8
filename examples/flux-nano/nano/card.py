"""The model card's tables, rendered from `scores/*.json`: `python -m nano.card [--check]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- scores: python -m nano.card -->", "<!-- end of scores -->"
GOALS = {"colour": 0.95, "shape": 0.90, "place": 0.95, "background": 0.98}
MARKS = (*GOALS, "all_right")


def render(scores: Path) -> str:
    """The block between the two comments, which are part of it."""
    found = [json.loads(path.read_text()) for path in sorted(scores.glob("*.json"))]
    found.sort(key=lambda each: (each["settings"]["dtype"], each["settings"]["guidance"]))
    return "\n".join([BEGIN, *_pictures(found), "", *_edits(found), "", *_ceiling(found), END])


def _pictures(found: list[dict[str, Any]]) -> Iterator[str]:
    first = found[0]
    many, objects = (first["text_to_image"][name] for name in ("pictures", "objects"))
    steps = first["settings"]["steps"]
    yield f"{many} held-out prompts ({objects} objects), {steps} steps, painted by diffusers from the stored"
    yield "weights and judged by `nano/checker.py`:"
    yield ""
    yield "| | colour | shape | place | background | all right |"
    yield "|---|---|---|---|---|---|"
    yield "| goal | " + " | ".join(f"{goal:.0%}" for goal in GOALS.values()) + " | |"
    for each in found:
        yield f"| {_name(each)} | {_shares(each['text_to_image'])} |"
    for group in ("one_object", "two_objects"):
        yield f"| the first row, {group.replace('_', ' ')} | {_shares(first[group])} |"


def _edits(found: list[dict[str, Any]]) -> Iterator[str]:
    pairs = found[0]["edits"]["edits"]
    yield f"Reference edits, {pairs} held-out pairs, painted by diffusers' `FluxKontextPipeline`. Made: the"
    yield "attribute asked for is right; kept: everything else is."
    yield ""
    yield "| | change made | everything else kept | both | PSNR to the true result |"
    yield "|---|---|---|---|---|"
    for each in found:
        if rates := each.get("edits"):
            shares = " | ".join(f"{rates[name]:.1%}" for name in ("made", "kept", "both"))
            yield f"| {_name(each)} | {shares} | {rates['psnr']:.1f} dB |"


def _ceiling(found: list[dict[str, Any]]) -> Iterator[str]:
    rates = found[0]["autoencoder"]
    marks = ", ".join(f"{name} {rates[name]:.1%}" for name in GOALS)
    count, psnr = rates["pictures"], rates["psnr"]
    yield f"The autoencoder alone reconstructs {count} held-out pictures at {psnr:.1f} dB, after which the"
    yield f"checker finds right: {marks}. That is the ceiling for every row above."


def _name(each: dict[str, Any]) -> str:
    settings = each["settings"]
    arithmetic = "" if settings["dtype"] == "float32" else f", {settings['dtype']} arithmetic"
    return f"guidance {settings['guidance']:g}{arithmetic}"


def _shares(rates: dict[str, float]) -> str:
    return " | ".join(f"{rates[name]:.1%}" for name in MARKS)


def main() -> int:
    """Rewrite the card, or say whether it is what the scores say."""
    page = HERE / "README.md"
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page.name} lacks {BEGIN} or {END}")
    new = before + render(HERE / "scores") + after
    if "--check" in sys.argv:
        if new != text:
            print(f"{page.name} is stale; run: python -m nano.card", file=sys.stderr)
        return int(new != text)
    page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
