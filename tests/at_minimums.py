"""Build, verify and paint with the oldest versions that setup.cfg allows, in an environment of their own.

python tests/at_minimums.py cpu FOLDER BUNDLE     # paints as FOLDER/now.png was painted, to a level of 255
python tests/at_minimums.py export FOLDER [--keep torch]   # builds flux-nano anew, verifies and paints it
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from minimums import ROOT, minimums

PROMPT = "a red circle at the top left on a white background"
COMPARE = """
import sys, numpy, PIL.Image
one, other = (numpy.asarray(PIL.Image.open(path)).astype(int) for path in sys.argv[1:])
assert one.std() > 5 and one.shape == other.shape
most = abs(one - other).max()
print("pictures differ by", most, "of 255")
sys.exit(int(most > 1))  # a NumPy bool is no exit code of 0
"""


def run(*words: str | Path) -> None:
    """Run a command; end with its code when it fails."""
    print("+", *words, flush=True)
    if code := subprocess.run(list(map(str, words)), check=False).returncode:
        sys.exit(code)


def environment(folder: Path, extras: list[str], keep: list[str]) -> Path:
    """A new virtual environment with the minimums and this package: its bin/."""
    run(sys.executable, "-m", "venv", folder)
    wanted = folder / "minimums.txt"
    lines = {line.partition("==")[0]: line for extra in extras for line in minimums(extra, keep)}
    wanted.write_text("\n".join(lines.values()) + "\n", encoding="utf-8")
    pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--requirement", wanted, "setuptools", "wheel")
    run(*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ROOT)
    return folder / "bin"


def paint(bin_: Path, bundle: Path, folder: Path, out: str) -> None:
    """Paint as now.png was painted, and compare."""
    words = ("--backend", "onnxruntime", "--steps", "4", "--seed", "3", "--force", "--out", folder / out)
    run(bin_ / "flux-run", "--help")
    run(bin_ / "flux-run", "generate", bundle, PROMPT, *words)
    run(bin_ / "python", "-c", COMPARE, folder / "now.png", folder / out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extra", choices=["cpu", "export"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--keep", action="append", default=[])
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    if asked.extra == "cpu":
        paint(environment(folder / "cpu", ["cpu"], []), asked.bundle, folder, "cpu.png")
    else:
        bin_ = environment(folder / "export", ["cpu", "export"], asked.keep)
        run(bin_ / "flux-export", "build", ROOT / "examples" / "flux-nano", "--out", folder / "bundle")
        run(bin_ / "flux-export", "verify", folder / "bundle")
        paint(bin_, folder / "bundle", folder, "export.png")
