"""The README's strip of pictures: the first rows of flux-nano's sheet of samples.

python benchmarks/strip.py        after `make score` has painted the sheet
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
ROWS, ALL = 2, 4


def main() -> None:
    """Cut the rows that are shown."""
    with Image.open(ROOT / "examples" / "flux-nano" / "samples.png") as sheet:
        sheet.crop((0, 0, sheet.width, sheet.height * ROWS // ALL)).save(
            ROOT / "docs" / "gallery" / "strip.png", optimize=True
        )


if __name__ == "__main__":
    main()
