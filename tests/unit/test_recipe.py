from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flux_trt.exporter.checkpoints.recipe import (
    Concat,
    Flatten,
    Key,
    Recipe,
    SwapHalves,
    Tensors,
)
from flux_trt.exporter.checkpoints.tensorfile import read_header
from flux_trt.exporter.families.flux1.model import Conditioner, Denoiser
from flux_trt.exporter.families.flux1.names import transformer_from_diffusers
from flux_trt.exporter.families.flux1.params import FLUX_DEV

WIDE = replace(FLUX_DEV, depth=1, depth_single_blocks=1)


@pytest.fixture
def tensors(tmp_path: Path) -> Tensors:
    values = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.arange(3.0).reshape(1, 3),
        "c": torch.arange(4.0).reshape(2, 2, 1, 1),
    }
    save_file(values, tmp_path / "a.safetensors")
    return read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Key("a"), [[0, 1, 2], [3, 4, 5]]),
        (Concat("b", "a"), [[0, 1, 2], [0, 1, 2], [3, 4, 5]]),
        (SwapHalves("a"), [[3, 4, 5], [0, 1, 2]]),
        (Flatten("c"), [[0, 1], [2, 3]]),
    ],
)
def test_makes_its_parameter(tensors: Tensors, recipe: Recipe, expected: list[list[float]]) -> None:
    assert recipe.load(tensors).tolist() == expected
    assert recipe.shape(tensors) == tuple(torch.tensor(expected).shape)


def test_parts_that_do_not_fit_have_no_shape(tensors: Tensors) -> None:
    assert Concat("a", "c").shape(tensors) == ()


def test_repr_tells_recipes_apart() -> None:
    assert len({repr(recipe) for recipe in (Key("a"), SwapHalves("a"), Concat("a"), Concat("a", "b"))}) == 4


def test_bfl_names_are_those_that_diffusers_converts() -> None:
    """diffusers' converter turns a BFL state of FLUX.1's width into names from which ours gives it back."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    torch.manual_seed(0)
    recipes = transformer_from_diffusers(1, 1, guidance_embed=True)
    with torch.device("meta"):
        halves = (Conditioner(WIDE), Denoiser(WIDE))
    shapes = {name: value.shape for half in halves for name, value in half.named_parameters()}
    assert set(shapes) == set(recipes)
    state = {name: torch.rand(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    converted = convert_flux_transformer_checkpoint_to_diffusers(dict(state))
    assert {name for recipe in recipes.values() for name in recipe.names} == set(converted)
    for name, recipe in recipes.items():
        assert torch.equal(recipe.make(*(converted[key] for key in recipe.names)), state[name]), name
