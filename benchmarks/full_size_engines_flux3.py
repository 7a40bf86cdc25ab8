"""FP8 engines at FLUX.3's full size, without a GPU: quantise and build denoiser and text encoder.

    python benchmarks/full_size_engines_flux3.py [--member base] [--stages denoiser,text] [--work DIR]

`full_size_fp8` says how. The denoiser takes no reference picture or one, and windows of 80 to 8160 tokens, as
the command builds them when nothing else is said.
"""

from __future__ import annotations

from full_size_flux3 import ENCODER, MEMBERS, encoder, transformer
from full_size_fp8 import run

if __name__ == "__main__":
    run(__file__, __doc__, MEMBERS, lambda member: (transformer(member), encoder(), ENCODER))
