"""The oldest versions that setup.cfg allows, as lines that pip takes.

    python tests/minimums.py cpu [--keep torch] > minimums.txt

`--keep NAME` takes the version of constraints.txt instead, for what an index has only as gigabytes.
"""

from __future__ import annotations

import argparse
import configparser
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINE = re.compile(r"(?P<name>[\w.-]+)\s*>=\s*(?P<version>[\w.]+)(?P<rest>.*)")


def minimums(extra: str, keep: Sequence[str] = ()) -> list[str]:
    """A requirement for each package of the base and of an extra: `name==oldest; marker`.

    Raises:
        ValueError: a requirement that says no oldest version.
    """
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [*config["options"]["install_requires"].split("\n")]
    lines += config["options.extras_require"][extra].split("\n")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = dict(line.split("==") for line in pinned if "==" in line)
    found = []
    for line in filter(None, map(str.strip, lines)):
        parts = LINE.fullmatch(line)
        if parts is None:
            raise ValueError(f"setup.cfg says no oldest version of {line!r}")
        name = parts["name"]
        version = exact[name] if name in keep else parts["version"]
        marker = parts["rest"].partition(";")[2]
        found.append(f"{name}=={version}" + (f";{marker}" if marker else ""))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extra")
    parser.add_argument("--keep", action="append", default=[])
    asked = parser.parse_args()
    print("\n".join(minimums(asked.extra, asked.keep)))
