import numpy as np
import pytest
import torch
from diffusers import Flux2Pipeline, FluxPipeline
from diffusers.utils.torch_utils import randn_tensor
from family_rules import FLUX1_NOISE, FLUX2_NOISE, TOKENS_NOISE
from hypothesis import given, settings
from hypothesis import strategies as st

from flux_trt.runtime.sampling import noise

# Box-Muller amplifies one rounding of a uniform close to 1 in the tail, where |x| is above 4.
TOLERANCE = {"rtol": 2e-6, "atol": 1e-6}


def torch_normal(seed, size):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).numpy()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(16, 5000))
def test_normal_equals_torch(seed, size):
    np.testing.assert_allclose(noise.normal(seed, size), torch_normal(seed, size), **TOLERANCE)


@pytest.mark.parametrize("size", [16, 17, 31, 32, 33, 100_003])
@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**64 - 1])
def test_edges_of_blocks_and_seeds(seed, size):
    np.testing.assert_allclose(noise.normal(seed, size), torch_normal(seed, size), **TOLERANCE)


def test_a_million_numbers_differ_by_half_a_millionth_at_most():
    difference = np.abs(noise.normal(42, 1_000_000) - torch_normal(42, 1_000_000))
    assert difference.max() <= 1e-6


def test_fewer_than_a_block_is_refused():
    with pytest.raises(ValueError, match="at least 16"):
        noise.normal(0, 15)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (64, 64), (5, 40)])
def test_noise_equals_diffusers_with_one_generator_per_picture(rows, columns):
    seeds = (3, 4, 3)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    drawn = randn_tensor((3, 16, 2 * rows, 2 * columns), generators, dtype=torch.float32)
    expected = FluxPipeline._pack_latents(drawn, 3, 16, 2 * rows, 2 * columns)
    found = noise.draw(FLUX1_NOISE, seeds, (rows, columns))
    np.testing.assert_allclose(found, expected.numpy(), **TOLERANCE)
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (32, 20)])
def test_noise_drawn_with_a_tokens_channels_equals_diffusers(rows, columns):
    """FLUX.2 draws [128, h, w]: the numbers are FLUX.1's, laid out otherwise."""
    seeds = (3, 4, 3)
    pipe = object.__new__(Flux2Pipeline)
    pipe.vae_scale_factor = 8
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    size = {"height": 16 * rows, "width": 16 * columns}
    expected, _ = pipe.prepare_latents(
        batch_size=3, num_latents_channels=32, dtype=torch.float32, device="cpu", generator=generators, **size
    )
    found = noise.draw(FLUX2_NOISE, seeds, (rows, columns))
    np.testing.assert_allclose(found, expected.numpy(), **TOLERANCE)


def test_noise_drawn_token_by_token_and_rounded():
    expected = torch.randn(2 * 3, 128, generator=torch.Generator().manual_seed(7)).bfloat16().float()
    found = noise.draw(TOKENS_NOISE, (7,), (2, 3))[0]
    # A number at the border between two bfloat16 numbers may fall to either side.
    assert np.mean(found == expected.numpy()) > 0.99
    np.testing.assert_allclose(found, expected.numpy(), rtol=2**-8)
