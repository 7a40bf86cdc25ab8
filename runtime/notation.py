"""Numbers as people write them, on a command line or in a file of jobs: 1024x768 and 0,0,256,0."""

from __future__ import annotations


def size(text: str) -> tuple[int, int]:
    """(width, height) in pixels of "1024x768".

    Raises:
        ValueError: anything else, with an example.
    """
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise ValueError(f"{text!r} is not WIDTHxHEIGHT, such as 1024x768")
    return int(width), int(height)


def margins(text: str) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of "0,0,256,0".

    Raises:
        ValueError: anything else, with an example.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"{text!r} is not LEFT,TOP,RIGHT,BOTTOM in pixels, such as 0,0,256,0")
    left, top, right, bottom = map(int, parts)
    return left, top, right, bottom


def sigmas(text: str) -> tuple[float, ...]:
    """The noise levels of "1,0.75,0.5".

    Raises:
        ValueError: anything else, with an example.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is not noise levels, such as 1,0.75,0.5,0.25") from None
