"""Ways in which a file can be hostile: bytes that are damaged, and JSON that is well-formed and wrong.

Everything is drawn from a `random.Random`, so that a seed is a case.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

OUTSIDE = "../outside/secret"
"""A file beside each case's folder that nothing may open."""
DEEP = 100_000
NUMBERS = (0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 1e308, 5e-324, 0.5, -0.0)
SPECIAL = (float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "", "../x", OUTSIDE, "/etc/passwd", "/dev/zero", "C:\\x", "a\x00b", "\ud800", "a\nb", "\x1b[31m",
    "\u202e",
    "x" * 300, "x" * 70_000, "a/" * 3000 + "a", ".", "..", "bundle.json", "~", "file:///etc/passwd",
)  # fmt: skip
RAW = (
    b"[" * DEEP, b'{"a":' * DEEP, b"9" * 5000, b"1e999999", b"NaN", b"-Infinity", b"null", b"[]",
    b'"\\ud800"',
    b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"a":1,"a":2}', b"", b"\x00" * 64,
)  # fmt: skip


class Calm(random.Random):
    """Draws with which nothing is changed: the case is the whole file."""

    def random(self) -> float:
        return 0.99

    def getrandbits(self, k: int, /) -> int:
        return 0


def damaged(rng: random.Random, data: bytes, others: tuple[bytes, ...] = ()) -> bytes:
    """Flips, cuts, splices, insertions and overwritten numbers, one to four of them."""
    if isinstance(rng, Calm):
        return data
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) + 1)
        what = rng.randrange(7)
        if what == 0 and found:
            for _ in range(rng.randint(1, 8)):
                found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
        elif what == 1:
            del found[at:]
        elif what == 2:
            del found[at : at + rng.choice((1, 4, 16, 256))]
        elif what == 3:
            found[at:at] = rng.randbytes(rng.choice((1, 4, 16, 256)))
        elif what == 4:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice((0, 1, 2**7, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), len(found)))
            found[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
        elif what == 5:
            other = rng.choice(others) if others else bytes(found)
            start = rng.randrange(len(other) + 1)
            found[at : at + 64] = other[start : start + rng.choice((8, 64, 1024))]
        else:
            # Only near the beginning, where headers are.
            head = rng.randrange(min(64, len(found)) + 1)
            found[head : head + 4] = rng.randbytes(4)
    return bytes(found)


def distorted(rng: random.Random, value: Any) -> bytes:
    """JSON text of a value of which one to three places are changed, or that is no such value at all."""
    if isinstance(rng, Calm):
        return json.dumps(value).encode()
    if rng.random() < 0.08:
        return rng.choice(RAW)
    root = [copy.deepcopy(value)]
    for _ in range(rng.randint(1, 3)):
        places = list(_places(root))
        holder, key = rng.choice(places)
        _change(rng, holder, key)
    text = json.dumps(root[0] if root else None)
    if rng.random() < 0.05:
        text = text.replace(":", f":{'[' * DEEP}", 1)
    if rng.random() < 0.05:
        text = text.replace(": 1", ": " + "1" * 5000, 1)
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = f"{{{text[1:-1]}, {text[1:-1]}}}"  # every key twice
    return text.encode()


def anything(rng: random.Random) -> Any:
    """A value of any JSON type."""
    what = rng.randrange(8)
    if what == 0:
        return rng.choice((None, True, False))
    if what == 1:
        return rng.choice(SPECIAL)
    if what in (2, 3):
        return rng.choice(NUMBERS)
    if what in (4, 5):
        return rng.choice(TEXTS)
    if what == 6:
        return [anything(rng) for _ in range(rng.randrange(3))]
    return {rng.choice(TEXTS): anything(rng) for _ in range(rng.randrange(3))}


def _places(value: Any) -> Any:
    """Every (container, key) of a value."""
    for key in range(len(value)) if isinstance(value, list) else list(value):
        yield value, key
        if isinstance(value[key], list | dict):
            yield from _places(value[key])


def _change(rng: random.Random, holder: Any, key: Any) -> None:
    what = rng.randrange(5)
    if what == 0 and len(holder) > 1:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[rng.choice((*TEXTS, *holder))] = holder.pop(key)
    elif what == 2 and isinstance(holder[key], str):
        holder[key] = rng.choice(TEXTS)
    elif what == 3 and isinstance(holder[key], int | float):
        holder[key] = rng.choice((*NUMBERS, *SPECIAL))
    else:
        holder[key] = anything(rng)
