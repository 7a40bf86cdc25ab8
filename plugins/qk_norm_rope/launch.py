"""Launch a compiled kernel on a CUDA stream through cuda-python."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from flux_trt.plugins.qk_norm_rope.binary import Kernel, find
from flux_trt.plugins.qk_norm_rope.contract import APART, INPUTS, Attributes

PARAMETERS = (ctypes.c_void_p,) * 8 + (ctypes.c_int32,) * 4 + (ctypes.c_float,) * 3 + (ctypes.c_void_p,) * 2
"""As in manifest.json; the last two are scratch memory of Triton's, which this kernel does not use."""
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4}
"""Bytes of an element."""
CAPABILITY = "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY"


@dataclass(frozen=True)
class Launch:
    """The op for inputs of one dtype and shape, ready to run in one CUDA context.

    Running it allocates nothing and waits for nothing, so a CUDA graph can capture it.
    """

    kernel: Kernel
    function: Any
    """CUfunction."""
    grid: tuple[int, int, int]
    sizes: tuple[int | float, ...]
    keys: int | None
    """Bytes from the first query to the first key in one tensor; None: keys are a tensor of their own."""

    def run(self, inputs: Sequence[int], outputs: Sequence[int], stream: int) -> None:
        """Start the kernel.

        Args:
            inputs: addresses of qkv, or of q and k, then of q_scale, k_scale, cos and sin on the GPU,
                multiples of 16.
            outputs: addresses of q and k.
            stream: the CUstream, as a number.

        Raises:
            RuntimeError: CUDA refused.
        """
        from cuda.bindings import driver

        if self.keys is not None:
            inputs = (inputs[0], inputs[0] + self.keys, *inputs[1:])
        values = (*inputs, *outputs, *self.sizes, 0, 0)
        block, shared = (self.kernel.threads, 1, 1), self.kernel.shared
        _call(
            driver.cuLaunchKernel, self.function, *self.grid, *block, shared, stream, (values, PARAMETERS), 0
        )


def prepare(
    attributes: Attributes, projected: Sequence[int], head_dim: int, dtype: str, inputs: int = len(INPUTS)
) -> Launch:
    """Load the kernel for the current CUDA context's GPU, once per context.

    Args:
        attributes: the node's.
        projected: the shape (B, L, C) of qkv, or of q, which is k's too.
        head_dim: E.
        dtype: of it: float16, bfloat16 or float32.
        inputs: how many the node has; one more where queries and keys are apart.

    Raises:
        ValueError: there is no kernel for this GPU.
        RuntimeError: CUDA refused.
    """
    from cuda.bindings import driver

    device = _call(driver.cuCtxGetDevice)
    capability = tuple(
        _call(driver.cuDeviceGetAttribute, getattr(driver.CUdevice_attribute, f"{CAPABILITY}_{part}"), device)
        for part in ("MAJOR", "MINOR")
    )
    kernel = find(capability, dtype, head_dim, attributes.fp8_scales is not None)
    (B, L, C), H = projected, attributes.num_heads
    keys = None if inputs == len(APART) else H * head_dim * SIZES[dtype]
    return Launch(
        kernel,
        _load(int(_call(driver.cuCtxGetCurrent)), kernel),
        kernel.grid(B, L, H),
        (L, C, H, head_dim, attributes.epsilon, *(attributes.fp8_scales or (1.0, 1.0))),
        keys,
    )


@cache
def _load(context: int, kernel: Kernel) -> Any:
    """The kernel's CUfunction in the current context, whose address is `context`."""
    from cuda.bindings import driver

    module = _call(driver.cuModuleLoadData, kernel.code)
    return _call(driver.cuModuleGetFunction, module, kernel.name.encode())


def _call(function: Any, *arguments: Any) -> Any:
    fault, *found = function(*arguments)
    if fault:
        raise RuntimeError(f"{function.__name__} failed: {fault.name}; see that the driver fits the GPU")
    return found[0] if found else None
