import numpy as np
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxPosEmbed

from flux_trt.plugins.rope import qk_norm_rope, rope_tables
from flux_trt.runtime import latents


@pytest.mark.parametrize("axes", [(16, 56, 56), (16, 24, 24), (32, 32, 32, 32)])
@pytest.mark.parametrize("theta", [10000, 2000])
def test_tables_equal_fluxposembed(axes, theta):
    rng = np.random.default_rng(len(axes))
    positions = rng.integers(0, 512, (300, len(axes))).astype(np.float32)
    found = rope_tables(positions, axes, theta)
    expected = FluxPosEmbed(theta, list(axes))(torch.from_numpy(positions))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == np.float32
        assert mine.shape == (300, sum(axes) // 2)
        np.testing.assert_allclose(np.repeat(mine, 2, axis=1), theirs.numpy(), rtol=0, atol=1e-7)


def test_norm_and_rotation_equal_diffusers():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 3, 40, 64, generator=generator)
    q_scale, k_scale = torch.rand(2, 64, generator=generator) + 0.5
    positions = latents.positions(10, [(5, 6)])
    cos, sin = rope_tables(positions, (16, 24, 24), 10000)
    found = qk_norm_rope(q.numpy(), k.numpy(), q_scale.numpy(), k_scale.numpy(), cos, sin)
    tables = FluxPosEmbed(10000, [16, 24, 24])(torch.from_numpy(positions))
    for mine, x, scale in ((found[0], q, q_scale), (found[1], k, k_scale)):
        normed = torch.nn.functional.rms_norm(x, (64,), scale, 1e-6)
        theirs = apply_rotary_emb(normed, tables, sequence_dim=2)
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-5, atol=1e-5)


def test_positions_and_axes_must_fit():
    with pytest.raises(ValueError, match="one column for each of 3 axes"):
        rope_tables(np.zeros((4, 2)), (16, 56, 56), 10000)
    with pytest.raises(ValueError, match="must be even"):
        rope_tables(np.zeros((4, 2)), (16, 15), 10000)
