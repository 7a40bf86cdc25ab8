"""FLUX.3 through TensorRT's backend on the simulated GPU: the pictures that onnxruntime paints."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import simulator_bundle
from flux3_checkpoints import LONG
from given import drawn
from PIL import Image
from simulator_cuda import CudaSimulator

from flux_trt.runtime.errors import BackendError

SIZE = (48, 64)
PROFILE = {
    **simulator_bundle.WIDE,
    "text": (80, 80, 400),
    "tokens": (1, 16, 128),
    "sequence": (1, 80, 1024),
    "reference": (0, 16, 128),
}
HOLE = Image.new("L", SIZE)
HOLE.paste(255, (11, 5, 40, 50))
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "guided, windows of other lengths": ("base", {"guidance": 2.5}),
    "guided, with references": ("base", {"guidance": 2.5, "reference": [drawn(64, 70, 1), drawn(64, 48, 2)]}),
    "inpaint": ("base", {"image": drawn(*SIZE, 3), "mask": HOLE, "strength": 0.9}),
    "jumps": ("distilled", {}),
    "jumps, with references": ("distilled", {"reference": [drawn(64, 70, 1)]}),
}


@pytest.fixture(scope="module")
def engines(
    flux3_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = shutil.copytree(flux3_bundle(kind), tmp_path_factory.mktemp("engines") / "bundle")
            simulator_bundle.add_engines(made[kind], profiles=[PROFILE])
        return made[kind]

    return get


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("memory", ["resident", "sequential"])
def test_the_simulated_gpu_paints_the_same_bytes(
    engines: Callable[[str], Path], name: str, memory: str
) -> None:
    """The second prompt is longer."""
    kind, more = ASKED[name]
    asked = {"size": SIZE, "steps": 3, "batch": 2, **more}
    cuda = simulator_bundle.agree(
        engines(kind), lambda pipeline, seed: pipeline.generate(LONG, seed=seed, **asked), memory
    )
    assert memory == "sequential" or cuda.calls["cudaGraphLaunch"] >= 1, "the loop was recorded"


@pytest.mark.parametrize("source", [LONG[0], LONG[1]])
def test_flowedit_with_windows_of_other_lengths(engines: Callable[[str], Path], source: str) -> None:
    """With plain steps at the end, which take the target's conditions alone."""
    asked = {"size": SIZE, "steps": 4, "n_max": 3, "n_min": 1, "source": source, "target": LONG[0]}
    simulator_bundle.agree(
        engines("base"), lambda pipeline, seed: pipeline.edit(drawn(*SIZE, 3), seed=seed, **asked)
    )


def test_a_prompt_that_the_engines_have_no_room_for(
    flux3_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    root = shutil.copytree(flux3_bundle("distilled"), tmp_path / "bundle")
    simulator_bundle.add_engines(root, profiles=[{**PROFILE, "text": (80, 80, 80)}])
    with simulator_bundle.pipeline(root, CudaSimulator()) as pipeline:
        assert pipeline.generate(LONG[0], size=SIZE, steps=1)
        with pytest.raises(BackendError, match="not built for text 240.* or build engines with --max-text"):
            pipeline.generate(LONG[1], size=SIZE, steps=1)
