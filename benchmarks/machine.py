"""What every results file says of where and how it was made; the scripts here import it by this name."""

from flux_trt.bench.machine import describe, write

__all__ = ["describe", "write"]
