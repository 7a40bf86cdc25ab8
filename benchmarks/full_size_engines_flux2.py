"""FP8 engines at FLUX.2's full sizes, without a GPU: quantise and build denoiser and text encoder.

    python benchmarks/full_size_engines_flux2.py [--member klein-4b] [--stages denoiser,text] [--work DIR]

`full_size_fp8` says how.
"""

from __future__ import annotations

from full_size_flux2 import ENCODERS, SIZES, encoder, transformer
from full_size_fp8 import run

if __name__ == "__main__":
    run(
        __file__,
        __doc__,
        tuple(SIZES),
        lambda member: (transformer(member), encoder(member), ENCODERS[member]),
    )
