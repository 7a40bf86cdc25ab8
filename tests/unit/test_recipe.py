from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flux_trt.exporter.recipe import Concat, Flatten, Key, Recipe, SwapHalves, Tensors
from flux_trt.exporter.tensorfile import read_header


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
