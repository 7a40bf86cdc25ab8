"""The pages, their links, and the commands that they show."""

import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    page
    for page in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "examples").glob("*/README.md")),
        *sorted((ROOT / "plugins").glob("**/README.md")),
    )
    if page.is_file()
]
COMMANDS = {
    "flux-bench": "flux_trt.bench.cli",
    "flux-export": "flux_trt.exporter.cli",
    "flux-run": "flux_trt.runtime.cli",
    "flux-serve": "flux_trt.serving.cli",
}


def named(path):
    return str(path.relative_to(ROOT))


def links(text):
    """Targets of links and pictures outside of code."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)
    yield from re.findall(r'<img[^>]+src="([^"]+)"', text)


def anchors(text):
    """What a heading may be linked by, as GitHub makes it."""
    for heading in re.findall(r"^#+ +(.+)$", text, re.M):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def shown(text):
    """Command lines of the fenced blocks, continuations joined."""
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ ")


def group(name):
    return importlib.import_module(COMMANDS[name]).main
