"""The summary: what passed, what did not, what was timed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from on_gpu.parts import Part

MARKS = {
    "passed": "passed",
    "failed": "FAILED",
    "stopped": "STOPPED",
    "skipped": "skipped",
    "not run": "not run",
}


def line(found: Mapping[str, Any]) -> str:
    """A part in one line, as it ends."""
    counts = Counter(each["state"] for each in found.get("tests", []))
    told = ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
    why = found.get("why") or told
    head = f"{MARKS[found['state']]:8} {found['name']}, {found.get('seconds', 0):.0f} s"
    return f"{head}: {why}" if why else head


def plan(parts: Sequence[Part]) -> Iterator[str]:
    """What would be done, for who has no GPU."""
    for part in parts:
        yield f"  {part.name} (at most {part.seconds} s)"
        for each in part.shows:
            yield f"      {each}"


def summary(checks: Mapping[str, Any], out: Path) -> str:
    """A page to read and to send back."""
    hardware, parts = checks["hardware"], checks["parts"]
    counts = Counter(each["state"] for each in parts)
    lines = [
        f"# flux_trt on {hardware['gpu']}",
        "",
        f"{checks['date']}, sm {hardware['capability']}, driver {hardware['driver']}, "
        f"{hardware['memory_gb']} GB, power limit {hardware['power_limit_w']} W, {checks['flavour']}, "
        f"flux_trt {checks['flux_trt']} at {checks['commit']}. {checks['seconds'] / 60:.0f} minutes.",
        "",
        "**" + ", ".join(f"{counts[state]} {MARKS[state]}" for state in MARKS if counts[state]) + "**",
        "",
        "| part | state | s | tests | what it shows |",
        "|---|---|---|---|---|",
    ]
    for each in parts:
        states = Counter(test["state"] for test in each.get("tests", []))
        told = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        shows = "; ".join(each.get("shows", []))
        lines.append(
            f"| {each['name']} | {MARKS[each['state']]} | {each.get('seconds', 0):.0f} | {told} | {shows} |"
        )
    for each in parts:
        wrong = [test for test in each.get("tests", []) if test["state"] != "passed"]
        if each.get("why") or each.get("output") or wrong:
            lines += ["", f"## {each['name']}: {MARKS[each['state']]}", ""]
            lines += [each["why"]] if each.get("why") else []
            lines += [f"- {test['state']} `{test['name']}`: {test['why']}" for test in wrong]
            if each.get("output"):
                lines += ["", "```", each["output"].strip(), "```"]
    for path in sorted(out.glob("steps-*.json")):
        lines += ["", *times(json.loads(path.read_text(encoding="utf-8")), path.stem)]
    return "\n".join(lines) + "\n"


def times(found: Mapping[str, Any], title: str) -> Iterator[str]:
    """Milliseconds a step of every rung."""
    yield from (f"## {title}", "", "| what | ms a step | times as fast as the first | |", "|---|---|---|---|")
    for row in found["rows"]:
        ms = f"{row['ms_per_step']:.2f}" if "ms_per_step" in row else "-"
        faster = f"{row['times_as_fast']:.2f}" if "times_as_fast" in row else ""
        yield f"| {row['model']}: {row['name']} | {ms} | {faster} | {row.get('not_run_here', '')} |"
