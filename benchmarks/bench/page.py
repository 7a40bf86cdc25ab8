"""The report of a folder of results: one page of HTML that needs nothing else, and one of Markdown."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator
from pathlib import Path

from flux_trt.bench import plots
from flux_trt.bench.errors import BenchError
from flux_trt.bench.schema import KINDS, Result, Roofline, Run, Scaling, load
from flux_trt.bench.tables import markdown, title

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2126; background: #fff; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #d8dde3; }
h3 { font-size: 1.05rem; margin-top: 1.8rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: .8rem 0; font-size: 13px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e4e8ec; text-align: left; vertical-align: top; }
th { background: #f4f6f8; } td.right, th.right { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
figure { margin: 1rem 0; display: inline-block; } figcaption { font-size: 13px; color: #55606b; }
img { max-width: 100%; } code { font-size: 12.5px; overflow-wrap: anywhere; }
.noisy { background: #fff1d6; border-left: 4px solid #e07a1f; padding: .5rem .8rem; }
"""


def write_all(folder: Path) -> None:
    """Write report.html and report.md of the results files in `folder`.

    Raises:
        BenchError: there is none.
    """
    found: list[Result] = []
    for name, kind in KINDS.items():
        path = folder / f"{name}.json"
        if path.is_file():
            found.append(load(path, kind))  # type: ignore[type-var]
    if not found:
        names = ", ".join(f"{name}.json" for name in KINDS)
        raise BenchError(f"{folder} has no results ({names}); measure with flux-bench run first")
    text = "\n\n".join(markdown(each) for each in found)
    (folder / "report.md").write_text(
        f"# flux-bench: {found[0].about.bundle.name}\n\n{text}\n", encoding="utf-8"
    )
    (folder / "report.html").write_text(page(found), encoding="utf-8")


def page(found: list[Result]) -> str:
    """The page of HTML; its pictures are inside of it."""
    name = html.escape(f"flux-bench: {found[0].about.bundle.name}")
    body = "\n".join(part for each in found for part in _section(each))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{name}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n{body}\n</body>\n</html>\n"
    )


def _section(found: Result) -> Iterator[str]:
    heads = {"run": "Pictures, stages, starts", "roofline": "Roofline", "scaling": "Scaling"}
    yield f"<h2>{heads[found.kind]}</h2>"
    if isinstance(found, Run):
        for case in found.cases:
            yield f"<h3>{html.escape(title(case))}</h3>"
            yield _figure(plots.latency(case), "Whole pictures, painters in turns")
            yield _figure(plots.quality(case), "Quality against latency: high and left is good")
            yield _figure(plots.breakdown(case), "Where a batch's time goes, each graph run watched")
            yield _figure(plots.steps(case), "Denoiser steps")
    elif isinstance(found, Roofline):
        yield _figure(plots.roofline(found), "Stages under the measured ceilings")
    elif isinstance(found, Scaling):
        for over, picture in plots.curves(found):
            yield _figure(picture, f"Cost against {over}")
    yield from _html(markdown(found))


def _figure(picture: str | None, caption: str) -> str:
    if picture is None:
        return ""
    data = base64.b64encode(picture.encode()).decode()
    said = html.escape(caption)
    return (
        f'<figure><img alt="{said}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{said}</figcaption></figure>"
    )


def _html(text: str) -> Iterator[str]:
    """The Markdown that `tables` writes: tables, headings and lines."""
    rows: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line)
            continue
        if rows:
            yield _table(rows)
            rows = []
        if line.startswith("### "):
            yield f"<h3>{_inline(line[4:])}: figures</h3>"
        elif line.startswith("**Noisy**"):
            yield f'<p class="noisy">{_inline(line)}</p>'
        elif line:
            yield f"<p>{_inline(line)}</p>"


def _table(rows: list[str]) -> str:
    head, marks, *body = ([cell.strip() for cell in row.strip("|").split("|")] for row in rows)
    kinds = [' class="right"' if mark.endswith(":") else "" for mark in marks]

    def line(cells: list[str], tag: str) -> str:
        made = (f"<{tag}{kind}>{_inline(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    inside = "\n".join([line(head, "th"), *(line(cells, "td") for cells in body)])
    return f'<div class="wide"><table>\n{inside}\n</table></div>'


def _inline(text: str) -> str:
    text = html.escape(text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)
