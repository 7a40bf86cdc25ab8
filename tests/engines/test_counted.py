"""What TensorRT-RTX makes of our graphs, against the committed counts: a lost fusion fails."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import counted
import pytest
from click.testing import CliRunner

from flux_trt.exporter.cli import main
from flux_trt.exporter.engines.report import Counts, kernels

RESULTS = json.loads((Path(counted.__file__).parent / "results" / counted.NAME).read_text(encoding="utf-8"))
MADE = {row.name: row for row in counted.ROWS if row.name in RESULTS["rows"]}
SMALL = [name for name, row in MADE.items() if row.depth is None]
LARGE = [name for name, row in MADE.items() if row.model == "FLUX.1-dev" and row.depth == (1, 1)]
NEAR = 0.02
"""Of megabytes: below what any fusion moves, and above what a builder's choice of a layout does."""

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is only there on x86-64 Linux"
)


def as_committed(name: str, folder: Path) -> None:
    found, committed = counted.counted(MADE[name], folder), RESULTS["rows"][name]
    expected = Counts.model_validate(
        {each: committed[each] for each in Counts.model_fields if each in committed}
    )
    assert found.products == expected.products
    assert found.attentions == expected.attentions
    assert found.kernels <= expected.kernels, "a fusion is lost; if that is meant: benchmarks/counted.py"
    for each in ("elementwise_mb", "product_mb", "attention_mb"):
        assert getattr(found, each) <= getattr(expected, each) * (1 + NEAR), each


@rtx
@pytest.mark.parametrize("name", [name for name in SMALL if "fp8" in name])
def test_the_engines_of_flux_nano_are_as_committed(tmp_path: Path, name: str) -> None:
    as_committed(name, tmp_path)


@rtx
@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_blocks_of_flux_s_width_are_as_committed(tmp_path: Path, name: str) -> None:
    as_committed(name, tmp_path)


@pytest.mark.parametrize("name", [name for name in MADE if "attention" in name])
def test_fp8_attention_is_fp8(name: str) -> None:
    """Committed counts: as many attentions as blocks, all of them with FP8 inputs, and less to move."""
    row, without = RESULTS["rows"][name], RESULTS["rows"].get(name.removesuffix(" + attention"))
    blocks = sum(MADE[name].depth or (2, 4))
    assert row["attentions"] == {"FP8": blocks}
    if without is not None:
        assert without["attentions"] == {"BFloat16": blocks}
        assert row["attention_mb"] < 0.7 * without["attention_mb"]
        assert row["products"] == without["products"]
        assert row["kernels"] <= without["kernels"] + 1


@rtx
def test_inspect_shows_them(bundle) -> None:
    found = CliRunner().invoke(
        main, ["inspect", str(bundle("flux-nano")), "--engines", "--stages", "vae_decoder", "--json"]
    )
    assert found.exit_code == 0, found.output
    (stage,) = json.loads(found.stdout)["stages"].values()
    assert stage["kernels"] > 10
    assert stage["elementwise_mb"] > 0


def test_what_goes_with_engines_is_refused_without(tiny, tmp_path) -> None:
    found = CliRunner().invoke(main, ["inspect", str(tiny), "--sm", "8.9"])
    assert found.exit_code == 2
    assert "--sm goes with --engines." in found.output
    found = CliRunner().invoke(main, ["inspect", str(tmp_path), "--engines"])
    assert found.exit_code == 1
    assert "no bundle.json" in found.output
    found = CliRunner().invoke(main, ["inspect", str(tiny), "--engines", "--stages", "vae_encoder"])
    assert found.exit_code == 1
    assert "is a partial bundle without the stage vae_encoder" in found.output


LOG = """\
Layers:
Name: move_0, LayerType: kgen, Inputs: [ { Name: a, Dimensions: [2,8], Strides: [8,1], Datatype: Float, \
Format: (Linear) Row major }], Constants: [], Outputs: [ { Name: b, Dimensions: [2,8], Strides: [8,1], \
Datatype: FP8, Format: (Linear) Row major }], TacticName: t, StreamId: 0, Metadata: x
Name: node_MatMul_1, LayerType: gemm, Inputs: [ { Name: b, Dimensions: [2,8], Strides: [8,1], Datatype: FP8, \
Format: x }], Constants: [ { Name: w, Dimensions: [8,4], Strides: [4,1], Datatype: FP8, Format: x }], \
Outputs: [ { Name: c, Dimensions: [2,4], Strides: [4,1], Datatype: BFloat16, Format: x }], TacticName: t
Name: _gemm_mha_v2_2, LayerType: kgen, Inputs: [ { Name: q, Dimensions: [1,2,4], Strides: [8,4,1], Datatype: \
FP8, Format: x }, { Name: k, Dimensions: [1,2,4], Strides: [8,4,1], Datatype: FP8, Format: x }, { Name: v, \
Dimensions: [1,2,4], Strides: [8,4,1], Datatype: FP8, Format: x }], Constants: [], Outputs: [ { Name: o, \
Dimensions: [1,2,4], Strides: [8,4,1], Datatype: BFloat16, Format: x }], TacticName: t, StreamId: 0
Name: wait_3, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0
"""


def test_a_report_is_read_as_it_is_written() -> None:
    assert [(each.kind, each.nbytes) for each in kernels(LOG)] == [
        ("elementwise", 64 + 16),
        ("product", 16 + 32 + 16),
        ("attention", 3 * 8 + 16),
    ]
    found = Counts.of(LOG)
    assert (found.kernels, found.products, found.attentions) == (3, {"FP8": 1}, {"FP8": 1})
    with pytest.raises(ValueError, match="lists no kernel"):
        Counts.of("[I] built")
    with pytest.raises(ValueError, match="type 'Odd', which is not known"):
        Counts.of(LOG.replace("BFloat16", "Odd"))
