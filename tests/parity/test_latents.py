import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from flux_trt.runtime.pictures import latents


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 4), (3, 8)])
def test_packing_equals_diffusers(rows, columns):
    unpacked = torch.randn(2, 16, 2 * rows, 2 * columns, generator=torch.Generator().manual_seed(0))
    packed = FluxPipeline._pack_latents(unpacked, 2, 16, 2 * rows, 2 * columns)
    np.testing.assert_array_equal(latents.pack(unpacked.numpy()), packed.numpy())
    # Its height and width are in pixels: a latent is 8 of them.
    theirs = FluxPipeline._unpack_latents(packed, 16 * rows, 16 * columns, 8)
    np.testing.assert_array_equal(latents.unpack(packed.numpy(), (rows, columns)), theirs.numpy())
