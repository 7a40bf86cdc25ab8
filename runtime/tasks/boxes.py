"""Layout: where things are to be, as a list of boxes; to the model a text behind the prompt, nothing else.

A box is `{"id": "dog_1", "bbox": [y_min, x_min, y_max, x_max], "desc": "a brown dog"}`, in shares of the
picture's sides from its top left; of an edit `{"id", "from", "src_bbox", "tgt_bbox", "desc"}`, where `from`
is "target" for what is new or "ref_image_0", ... for what is seen in a reference picture. The prompt cites a
box as `<dog_1>`.

Source: BFL's flux3/bbox.py, as diffusers' modular_pipelines/flux3/prompt_upsampler.py has it
(`boxes_to_canvas`, `valid_added_row`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.tasks.numbers import kind

BoxesLike: TypeAlias = str | PathLike[str] | Sequence[Mapping[str, Any]]
"""A JSON file's name, or the list that stands in it."""
Row: TypeAlias = Mapping[str, Any]

CANVAS = 1000
"""Boxes are whole numbers up to this in the model's text."""
SLACK = 0.01
"""What a box may lie outside of the picture: it is cut at the edge."""
LARGEST = 1 << 20
"""Bytes of a file."""
ID = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
ORIGIN = re.compile(r"target|ref_image_(\d{1,3})")
PLACED, MOVED = {"id", "desc", "bbox"}, {"id", "desc", "from", "src_bbox", "tgt_bbox"}
FORM = "[y_min, x_min, y_max, x_max], shares of the picture from 0 to 1"


def boxes_of(given: BoxesLike | None, references: int) -> str:
    """The rows of a layout as the model reads them; "" where there is none.

    Args:
        given: a file or a list.
        references: how many reference pictures there are.

    Raises:
        RequestError: what is no such list, naming the box and what to do.
    """
    if given is None:
        return ""
    found = _read(given) if isinstance(given, (str, PathLike)) else given
    if not isinstance(found, (list, tuple)) or not found:
        what = "an empty list" if isinstance(found, (list, tuple)) else kind(found)
        raise RequestError(f"boxes are {what}; give a list of one or more, each with id, desc and bbox")
    rows = [_row(index, box, references) for index, box in enumerate(found, 1)]
    names = [row["id"] for row in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RequestError(f"two boxes have the id {twice[0]!r}; give each one of its own")
    return json.dumps(rows, ensure_ascii=False)


def placed(prompt: str, rows: str) -> str:
    """A prompt with the rows behind it."""
    return f"{prompt.rstrip()} {rows}" if rows else prompt


def as_given(rows: str) -> list[dict[str, Any]]:
    """The list of boxes that `boxes_of` makes these rows of."""

    def shares(value: Any) -> Any:
        return [each / CANVAS for each in value] if isinstance(value, list) else value

    return [{name: shares(value) for name, value in row.items()} for row in json.loads(rows)]


def uncited(prompts: Sequence[str], rows: str) -> Iterator[str]:
    """A line for boxes that a prompt does not speak of."""
    names = [row["id"] for row in json.loads(rows)] if rows else []
    for prompt in dict.fromkeys(prompts):
        if missing := [f"<{name}>" for name in names if f"<{name}>" not in prompt]:
            yield (
                f"the prompt does not cite {', '.join(missing)}; name each box where it is spoken of, "
                'as in "a dog <dog_1>"'
            )


def _read(path: str | PathLike[str]) -> Any:
    name = Path(path)
    try:
        with name.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as fault:
        why = getattr(fault, "strerror", None) or fault
        raise RequestError(f"cannot read the boxes {name}: {why}; check the name") from None
    if len(content) > LARGEST:
        raise RequestError(f"the boxes {name} have more than {LARGEST >> 20} MB; give a JSON list of boxes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as fault:
        raise RequestError(f"the boxes {name} are not JSON ({fault}); give a list of boxes") from None


def _row(index: int, box: Any, references: int) -> Row:
    def refuse(what: str) -> NoReturn:
        raise RequestError(f"box {index} {what}")

    if not isinstance(box, Mapping):
        refuse(f"is {kind(box)}; give an object with id, desc and bbox")
    given = {name: value for name, value in box.items() if value is not None}
    moved = given.keys() & (MOVED - PLACED)
    known = MOVED if moved else PLACED
    if strange := sorted(str(name) for name in set(given) - known):
        other = "bbox stands alone" if strange[0] in PLACED else f"the fields are {', '.join(sorted(known))}"
        refuse(f"has {strange[0]!r}; {other}")
    name, desc = given.get("id", f"obj_{index}"), given.get("desc", "")
    if not isinstance(name, str) or not ID.fullmatch(name):
        refuse(f"has the id {name!r:.40}; give a letter, then letters, digits and _, such as dog_1")
    if not isinstance(desc, str):
        refuse(f"has a desc that is {kind(desc)}; give text")
    try:
        desc.encode()
    except UnicodeEncodeError:
        refuse("has a desc that is not valid Unicode; give it as UTF-8")
    grids = {
        side: _grid(given[side], f"the {side} of box {index}") for side in given if side.endswith("bbox")
    }
    if not grids:
        refuse(f"has no {'src_bbox or tgt_bbox' if moved else 'bbox'}; give one, {FORM}")
    if not moved:
        return {"id": name, "bbox": grids["bbox"], "desc": desc}
    origin = given.get("from")
    match = ORIGIN.fullmatch(origin) if isinstance(origin, str) else None
    if match is None:
        refuse(f'has "from": {origin!r:.40}; give "target" for what is new, or "ref_image_0" and so on')
    if match[1] is not None and int(match[1]) >= references:
        refuse(
            f"is from {origin} and {references} reference pictures are given, counted from 0; give that one"
        )
    if (origin == "target") == ("src_bbox" in grids):
        refuse(
            "is new and has a src_bbox; leave that out"
            if origin == "target"
            else f"is from {origin} and has no src_bbox; say where it lies there"
        )
    return {
        "id": name,
        "from": origin,
        "src_bbox": grids.get("src_bbox"),
        "tgt_bbox": grids.get("tgt_bbox"),
        "desc": desc,
    }


def _grid(box: Any, which: str) -> list[int]:
    numbers = isinstance(box, (list, tuple)) and [
        isinstance(each, (int, float)) and not isinstance(each, bool) and math.isfinite(each) for each in box
    ]
    if not numbers or len(numbers) != 4 or not all(numbers):
        raise RequestError(f"{which} is {box!r:.60}; give {FORM}")
    if min(box) < -SLACK or max(box) > 1 + SLACK:
        raise RequestError(f"{which} is {list(box)!r:.60}, outside of the picture; give {FORM}, not pixels")
    found = [round(max(0.0, min(1.0, float(each))) * CANVAS) for each in box]
    if found[2] <= found[0] or found[3] <= found[1]:
        raise RequestError(f"{which} is {list(box)!r:.60}, which has no area; give {FORM}")
    return found
