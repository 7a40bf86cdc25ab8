"""The loss curves of all phases, from the journal of the training run."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

TITLES = {
    "vae": "autoencoder",
    "text": "text encoders",
    "dit": "transformer",
    "distill": "guidance distillation",
}
TITLES |= {"decoder": "decoder alone", "sight": "thumbnails of latents"}
AGAIN = "+"  # after a phase's name: it went on from a checkpoint that had been through it


def plot_losses(journal: Path, out: Path) -> None:
    """One panel per phase, four in a row, both axes logarithmic."""
    curves = read_losses(journal)
    rows = -(-len(curves) // 4)
    figure, panels = plt.subplots(rows, 4, figsize=(12.8, 3.0 * rows), squeeze=False)
    for panel in panels.flat[len(curves) :]:
        panel.set_visible(False)
    for panel, (phase, points) in zip(panels.flat, curves.items(), strict=False):
        steps, losses, seconds = zip(*points, strict=True)
        panel.loglog(steps, losses, linewidth=1.2)
        panel.set_title(f"{_title(phase)}\n{steps[-1] + 1:,} steps, {seconds[-1] / 60:.0f} min", fontsize=9)
        panel.set_xlabel("step")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(which="both", alpha=0.25)
    for row in panels:
        row[0].set_ylabel("training loss")
    figure.tight_layout()
    figure.savefig(out, dpi=110, metadata={"Software": None})
    plt.close(figure)


def join_journals(before: Path | None, journal: Path, out: Path) -> None:
    """Write the journal of a run after that of the checkpoint it went on from."""
    old = before.read_text() if before and before.exists() else ""
    names = {json.loads(line)["phase"] for line in old.splitlines()}
    new = []
    for entry in map(json.loads, journal.read_text().splitlines()):
        while entry["phase"] in names:
            entry["phase"] += AGAIN
        new.append(json.dumps(entry) + "\n")
    aside = out.with_suffix(".saving")
    aside.write_text(old + "".join(new))
    aside.replace(out)


def _title(phase: str) -> str:
    name = phase.rstrip(AGAIN)
    return TITLES.get(name, name) + (", continued" if name != phase else "")


def read_losses(journal: Path) -> dict[str, list[tuple[int, float, float]]]:
    """(step, loss, seconds) of each phase; where a resumed run repeats steps, the later entry counts."""
    entries: dict[str, list[tuple[int, float, float]]] = {}
    for line in journal.read_text().splitlines():
        entry = json.loads(line)
        points = entries.setdefault(entry["phase"], [])
        while points and points[-1][0] >= entry["step"]:
            points.pop()
        points.append((entry["step"], entry["loss"], entry["seconds"]))
    return entries
