from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flux_trt.exporter.engines.profile import Shapes, default_shapes, profiles, shapes_of
from flux_trt.exporter.families.flux1.variants import REFERENCES
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.pictures.vae import Tiling


@pytest.fixture
def found(tiny: Path) -> manifest.Manifest:
    """Of a bundle with patches of 16 pixels and sides of 16 to 256."""
    return manifest.read(tiny)


def test_one_tuned_profile_for_each_size_and_a_wide_one(found: manifest.Manifest) -> None:
    shapes = Shapes(((64, 32), (32, 64), (64, 64)), max_batch=4)
    tuned = profiles(found, "denoiser", shapes)
    assert [each["tokens"] for each in tuned] == [
        (8, 8, 8),
        (16, 16, 16),
        (4, 16, 16),
    ]  # 64x32 and 32x64 are alike
    assert [each["h"] for each in profiles(found, "vae_decoder", shapes)] == [
        (2, 2, 2),
        (4, 4, 4),
        (4, 4, 4),
        (2, 4, 4),
        (2, 4, 8),
    ]
    assert all(each["batch"] == (1, 1, 8) for each in tuned), "guidance takes two rows a picture"
    assert all(each["batch"] == (1, 1, 4) for each in profiles(found, "vae_decoder", shapes))


def test_without_the_wide_one_only_the_sizes_run(found: manifest.Manifest) -> None:
    (only,) = profiles(found, "denoiser", Shapes(((64, 32),), wide=False))
    assert only["tokens"] == (8, 8, 8)


def test_without_pairs_nothing_varies_in_a_tuned_profile(found: manifest.Manifest) -> None:
    shapes = Shapes(((64, 32),), wide=False, pairs=False)
    (only,) = profiles(found, "denoiser", shapes)
    assert only["batch"] == (1, 1, 1)
    assert all(least == most for least, _, most in only.values())
    (several,) = profiles(found, "denoiser", replace(shapes, max_batch=4))
    assert several["batch"] == (1, 1, 4)


def test_the_vae_sees_a_tile_of_a_large_picture(found: manifest.Manifest) -> None:
    larger = found.model_copy(update={"sizes": manifest.Sizes(smallest=16, largest=4096)})
    shapes = Shapes(((4096, 2048), (2048, 512)), wide=False)
    assert [(each["h"][2], each["w"][2]) for each in profiles(larger, "vae_decoder", shapes)] == [
        (64, 64),
        (32, 128),
    ]
    assert [each["tokens"][2] for each in profiles(larger, "denoiser", shapes)] == [256 * 128, 128 * 32]


def test_sequences_are_text_and_tokens(found: manifest.Manifest) -> None:
    text = found.tokenizers["t5"].pad.most
    for profile in profiles(found, "denoiser", Shapes(((64, 64),), max_references=2)):
        assert profile["tokens"][2] == 3 * 16
        assert all(s == t + text for s, t in zip(profile["sequence"], profile["tokens"], strict=True))


def test_a_stage_has_only_its_own_dims_and_no_profile_twice(found: manifest.Manifest) -> None:
    (only,) = profiles(found, "clip", Shapes(((32, 32), (64, 64)), max_batch=2))
    assert only == {"batch": (1, 1, 2)}


def test_a_size_that_the_bundle_refuses(found: manifest.Manifest) -> None:
    with pytest.raises(RequestError, match="multiple"):
        profiles(found, "denoiser", Shapes(((30, 32),)))


def test_a_bundle_that_follows_references_takes_one_by_default(found: manifest.Manifest) -> None:
    assert default_shapes(found).max_references == 0
    model = found.model.model_copy(update={"references": REFERENCES})
    assert default_shapes(found.model_copy(update={"model": model})).max_references == 1


def test_shapes_of() -> None:
    assert shapes_of({"batch": (1, 2, 3)}, ["batch", 77]) == ((1, 77), (2, 77), (3, 77))


@pytest.mark.parametrize("size", [(1024, 1024), (1360, 768), (2048, 2048), (4096, 2048)])
def test_the_vae_takes_whatever_the_denoiser_takes(found: manifest.Manifest, size: tuple[int, int]) -> None:
    """Every grid of at most the denoiser's tokens, or the tiles that it is cut into."""
    larger = found.model_copy(update={"sizes": manifest.Sizes(smallest=16, largest=4096)})
    shapes, tiling = Shapes((size,)), Tiling.of(larger.model, None)
    tokens = max(each["tokens"][2] for each in profiles(larger, "denoiser", shapes))
    taken = profiles(larger, "vae_decoder", shapes)
    for h in range(1, 257):
        for w in range(1, min(256, tokens // h) + 1):
            grid = (min(h, tiling.side), min(w, tiling.side)) if tiling.cuts((h, w)) else (h, w)
            dims = {"batch": 1, "h": grid[0], "w": grid[1]}
            assert any(all(p[d][0] <= n <= p[d][2] for d, n in dims.items()) for p in taken), (h, w)
    most = max(each["h"][2] * each["w"][2] for each in taken)
    assert most * 256 * 128 < 2**31, "TensorRT counts a tensor's values in 31 bits"


def test_references_are_as_large_as_the_rule_makes_them(found: manifest.Manifest) -> None:
    """Some of Kontext's sizes have more tokens than 1024x1024."""
    model = found.model.model_copy(update={"references": REFERENCES})
    defaults = found.defaults.model_copy(update={"width": 1024, "height": 1024})
    sizes = manifest.Sizes(smallest=16, largest=4096)
    kontext = found.model_copy(update={"model": model, "defaults": defaults, "sizes": sizes})
    shapes = default_shapes(kontext)
    assert profiles(kontext, "denoiser", shapes)[0]["tokens"] == (4096, 4096, 4096 + 50 * 83)
