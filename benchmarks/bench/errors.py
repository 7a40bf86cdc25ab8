"""The errors of flux-bench.

* FluxTrtError     see flux_trt.runtime.errors
  + BenchError     a measurement that cannot be made, read or compared
    + NoiseError   measurements that spread too widely to be reported
"""

from __future__ import annotations

from flux_trt.runtime.errors import FluxTrtError


class BenchError(FluxTrtError):
    """A measurement that cannot be made, read or compared."""


class NoiseError(BenchError):
    """Measurements that spread too widely to be reported."""
