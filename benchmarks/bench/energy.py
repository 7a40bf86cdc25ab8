"""The energy a GPU has taken, from NVML's counter (nvmlDeviceGetTotalEnergyConsumption, since Volta).

Written against NVML's C interface; it has been run on no GPU yet.
"""

from __future__ import annotations

import ctypes
from typing import Any

SUCCESS = 0


class Meter:
    """The counter of the first GPU, or nothing where there is none."""

    def __init__(self, library: Any = None) -> None:
        """Open NVML.

        Args:
            library: `libnvidia-ml`, or what offers the same functions.
        """
        self._device = ctypes.c_void_p()
        try:
            self._nvml = library or ctypes.CDLL("libnvidia-ml.so.1")
            found = self._nvml.nvmlInit_v2() == SUCCESS
            first = self._nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._device))
        except (OSError, AttributeError):
            found, first = False, SUCCESS
        self._works = found and first == SUCCESS

    def joules(self) -> float | None:
        """Since the driver was loaded; None where the driver does not count."""
        if not self._works:
            return None
        millijoules = ctypes.c_ulonglong()
        code = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(millijoules))
        return millijoules.value / 1e3 if code == SUCCESS else None
