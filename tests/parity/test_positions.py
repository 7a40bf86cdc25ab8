"""Where tokens stand, against the pipelines of diffusers."""

import numpy as np
import pytest
import torch
from diffusers import Flux2Pipeline, FluxKontextPipeline, FluxPipeline
from diffusers.modular_pipelines.flux3.before_denoise import Flux3TextRoPEInputsStep, _prepare_image_ids
from family_rules import FLUX1, FLUX2, FLUX3
from pydantic import ValidationError

from flux_trt.plugins.rope import rope_tables
from flux_trt.runtime.bundle.rules import Positions
from flux_trt.runtime.sampling import positions


def test_three_axes_equal_diffusers():
    picture = FluxPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    reference = FluxKontextPipeline._prepare_latent_image_ids(1, 2, 4, "cpu", torch.float32)
    reference[..., 0] = 1  # as FluxKontextPipeline.prepare_latents
    expected = torch.cat([torch.zeros(7, 3), picture, reference])
    found = positions.places(FLUX1, 7, [(3, 5), (2, 4)])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.numpy())


def test_four_axes_equal_diffusers():
    grids = [(3, 5), (2, 4), (4, 1), (1, 1)]
    text = Flux2Pipeline._prepare_text_ids(torch.zeros(1, 7, 8))
    target, *references = (torch.zeros(1, 128, *grid) for grid in grids)
    picture, others = Flux2Pipeline._prepare_latent_ids(target), Flux2Pipeline._prepare_image_ids(references)
    expected = torch.cat([text, picture, others], dim=1)[0]
    np.testing.assert_array_equal(positions.places(FLUX2, 7, grids), expected.numpy())


def test_a_scaled_grid_and_references_on_the_text_axis_equal_diffusers():
    """As FLUX.3 has them: half a step from token to token, and -1 - k for the k-th reference picture."""
    grids = [(2, 3), (3, 2), (1, 1)]
    expected = [Flux3TextRoPEInputsStep._prepare_text_ids(torch.zeros(1, 5, 8)).float()]
    expected += [_prepare_image_ids(*grid, 0.5, l_coord=-number) for number, grid in enumerate(grids)]
    np.testing.assert_array_equal(positions.places(FLUX3, 5, grids), torch.cat(expected).numpy())


def test_text_comes_first_and_references_are_numbered():
    found = positions.places(FLUX1, 2, [(2, 3), (1, 2)])
    expected = [(0, 0, 0)] * 2 + [(0, y, x) for y in range(2) for x in range(3)] + [(1, 0, 0), (1, 0, 1)]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_rotations_are_those_of_the_places():
    found = positions.rotations(FLUX2, 3, [(2, 2)])
    expected = rope_tables(positions.places(FLUX2, 3, [(2, 2)]), FLUX2.axes, FLUX2.theta)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("wrong", [{"text_axis": 3}, {"grid_axes": [1, 4]}, {"axes": [16, 56]}])
def test_axes_that_are_not_there_are_refused(wrong):
    with pytest.raises(ValidationError, match="there is no axis"):
        Positions.model_validate(FLUX1.model_dump() | wrong)
