"""What mkdocs makes of the pages: generated parts are filled in, and links to the code lead to copies of it.

A page says `<!-- site: NAME -->` where a generated part belongs; `PARTS` has the names. A link that leaves
docs/ leads to the file's text in the site, so that it needs no host beside its own; one to a folder is text.
"""

from __future__ import annotations

import html
import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")
COMMANDS = {
    "flux-export": "flux_trt.exporter.cli",
    "flux-run": "flux_trt.runtime.cli",
    "flux-serve": "flux_trt.serving.cli",
    "flux-bench": "flux_trt.bench.cli",
}
PACKAGES = {name: name for name in ("plugins", "runtime", "exporter", "serving")}
PACKAGES |= {"bench": "benchmarks/bench"}
_copies: dict[str, File] = {}


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files, **_: Any) -> str:
    """Fill in what is generated, and turn links to files of the repository into links to their text."""
    text = re.sub(r"<!-- site: (\w+) -->", lambda found: PARTS[found[1]](), markdown)
    up = "../" * page.file.src_uri.count("/")

    def link(found: re.Match[str]) -> str:
        mark, label, path, _anchor = found.groups()
        file = ROOT / path
        if not file.is_file():
            return label
        copy = f"source/{path}" if file.suffix in {".png", ".svg", ".html"} else f"source/{path}.txt"
        if copy not in _copies:
            _copies[copy] = File.generated(config, copy, abs_src_path=str(file))
            files.append(_copies[copy])
        return f"{mark}[{label}]({up}{copy})"

    return LINK.sub(link, text)


def on_post_page(output: str, **_: Any) -> str:
    """The sources are named as they are imported, and not by the links that they are read through."""
    return output.replace(".links/flux_trt/", "flux_trt/")


def on_pre_build(**_: Any) -> None:
    """Each build makes its copies anew, and sees the packages by their names, as `make types` does."""
    _copies.clear()
    (ROOT / ".links" / "flux_trt").mkdir(parents=True, exist_ok=True)
    for name, folder in PACKAGES.items():
        link = ROOT / ".links" / "flux_trt" / name
        if not link.is_symlink():
            link.symlink_to(Path("../..") / folder)


def commands() -> str:
    """Every command of every program, as click has it."""
    return "\n".join(line for name, module in COMMANDS.items() for line in _program(name, module))


def _program(name: str, module: str) -> Iterator[str]:
    main: click.Command = importlib.import_module(module).main
    yield from (f"## {name}", "", _prose(main.help), "")
    if isinstance(main, click.Group):
        for verb in sorted(main.commands):
            yield from (f"### {name} {verb}", "", *_command(f"{name} {verb}", main.commands[verb]))
    else:
        yield from _command(name, main, told=True)


def _command(name: str, command: click.Command, told: bool = False) -> Iterator[str]:
    context = click.Context(command, info_name=name)
    if not told:
        yield from (_prose(command.help), "")
    yield from (
        "```",
        context.get_usage().removeprefix("Usage: "),
        "```",
        "",
        "| option | what |",
        "|---|---|",
    )
    for each in command.get_params(context):
        record = each.get_help_record(context)
        if record is not None:
            option = html.escape(" ".join(record[0].split())).replace("|", "&#124;")
            yield f"| <code>{option}</code> | {_cell(record[1])} |"
    yield ""
    if command.epilog:
        yield from ("```", command.epilog.replace("\b\n", "").strip(), "```", "")


def _cell(text: str) -> str:
    return " ".join(_prose(text).split()).replace("|", "&#124;")


def _prose(text: str | None) -> str:
    """Text of click as Markdown that reads the same."""
    return re.sub(
        r"([\[\]*_])", r"\\\1", inspect.cleandoc(text or "").replace("\b\n", "").replace("<", "&lt;")
    )


def metrics() -> str:
    """What /metrics of flux-serve counts."""
    from prometheus_client.parser import text_string_to_metric_families

    from flux_trt.serving.metrics import Metrics

    rows = ["| name | kind | what |", "|---|---|---|"]
    for family in text_string_to_metric_families(Metrics().page().decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append(f"| `{name}` | {family.type} | {family.documentation} |")
    return "\n".join(rows)


def plots() -> str:
    """The plots of the committed flux-bench report, drawn into the page."""
    report = (ROOT / "benchmarks" / "results" / "bench" / "report.html").read_text(encoding="utf-8")
    drawn = re.findall(r"<svg.*?</svg>", report, re.S)
    return "\n\n".join(f'<div class="plot" markdown="0">{re.sub(chr(10), " ", each)}</div>' for each in drawn)


PARTS: dict[str, Callable[[], str]] = {"commands": commands, "metrics": metrics, "plots": plots}
warnings.filterwarnings("ignore", category=DeprecationWarning)
