"""What the README's recipes take, in a sentence each, of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from rows.row import Results

Found = Mapping[str, Results]
Sentence = tuple[str, str]
"""What was measured, and the results file's name."""


def card_24gb(found: Found) -> Iterator[Sentence]:
    """FLUX.1-dev in fp8 for one consumer card: the export and the engines."""
    if full := found.get("full_size_engines.json"):
        once = {name: each for name, each in full["engines"].items() if "," not in name}
        seconds = sum(each["seconds"] for each in once.values())
        memory = max(each["peak_gb"] for each in once.values())
        sizes = [each["engine_gb"] for each in once.values()]
        yield (
            f"export {full['export_seconds'] / 60:.0f} min, engines {seconds / 60:.0f} min and "
            f"{memory:.0f} GB of main memory, on two cores; the largest engine has {max(sizes):.1f} GB, "
            f"all have {sum(sizes):.1f} GB",
            "full_size_engines.json",
        )


def data_centre(found: Found) -> Iterator[Sentence]:
    """FLUX.1-dev in bf16: the export of the transformer."""
    if full := found.get("full_size.json"):
        yield (
            f"export of the transformer {full['wall_seconds'] / 60:.0f} min and {full['peak_rss_gb']:.1f} GB "
            f"of main memory, its {full['checkpoint_gb']:.1f} GB of weights linked",
            "full_size.json",
        )


def cpu_only(found: Found) -> Iterator[Sentence]:
    """FLUX.2 klein 4B: the export."""
    if full := found.get("full_size_flux2.json", {}).get("members", {}).get("klein-4b"):
        yield (
            f"export {full['wall_seconds'] / 60:.0f} min and {full['peak_rss_gb']:.1f} GB of memory, its "
            f"{full['checkpoint_gb']:.1f} GB of weights linked",
            "full_size_flux2.json",
        )


def serving(found: Found) -> Iterator[Sentence]:
    """What a process of the runtime takes, with flux-nano."""
    if start := found.get("cold_start.json"):
        seconds, memory = (
            start[key]["flux_run"]["median"] for key in ("first_picture_seconds", "peak_rss_mb")
        )
        yield (
            f"with flux-nano {seconds:.1f} s from a process's start to its first picture, {memory:.0f} MB",
            "cold_start.json",
        )


RECIPES: dict[str, Callable[[Found], Iterator[Sentence]]] = {
    "card_24gb": card_24gb,
    "data_centre": data_centre,
    "cpu_only": cpu_only,
    "serving": serving,
}
"""By the name of the block that they fill."""
FILES = ("full_size_engines.json", "full_size.json", "full_size_flux2.json", "cold_start.json")
