"""The oldest versions of libraries that work, as this package's own metadata say them: setup.cfg, no second list."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*>=\s*(?P<oldest>[\d.]+)(,<\s*(?P<first>[\d.]+))?")


def misfit(*names: str) -> str | None:
    """What is wrong with the versions of libraries that are installed; those that are not are not looked at.

    Args:
        names: of distributions, such as onnxruntime.

    Returns:
        One line about the first that is too old or too new, or None.
    """
    try:
        lines = requires("flux_trt") or []
    except PackageNotFoundError:  # run from a folder that was never installed
        return None
    for found in filter(None, map(_REQUIREMENT.match, lines)):
        name, oldest, first = found["name"], found["oldest"], found["first"]
        if _plain(name) not in map(_plain, names):
            continue
        try:
            here = version(name)
        except PackageNotFoundError:
            continue
        if _numbers(here) < _numbers(oldest):
            return f"needs {name} {oldest} or newer, this is {here}; pip install '{name}>={oldest}'"
        if first and _numbers(here) >= _numbers(first):
            return f"needs {name} older than {first}, this is {here}; pip install '{name}<{first}'"
    return None


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _numbers(text: str) -> tuple[int, ...]:
    """1.22.1.post1 -> (1, 22, 1); zeros at the end say nothing."""
    numbers = [int(each) for each in re.findall(r"\d+", re.split(r"[^\d.]", text)[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
