"""flux-bench serve and rows: what they write, and that all ways paint all that comes."""

import json
import random

import pytest
from click.testing import CliRunner

from flux_trt.bench.cli import main
from flux_trt.bench.load import BySteps, Together, arrivals, play
from flux_trt.runtime import Pipeline
from flux_trt.serving.rows import read


def run(*words):
    found = CliRunner().invoke(main, [str(word) for word in words])
    assert found.exit_code == 0, found.output
    return found.output


def test_a_table_of_rows_for_the_server(tiny, tmp_path):
    run(
        "rows", tiny, "--device", "cpu", "--sizes", "32x32,64x64", "--most", 4, "--runs", 2, "--out", tmp_path
    )
    table = read(tmp_path / "rows.json")
    assert set(table) == {32 * 32, 64 * 64}
    assert all(each in (1, 2, 4) for each in table.values())
    assert set(json.loads((tmp_path / "rows.json").read_text())["step_seconds"]["32x32"]) == {"1", "2", "4"}


def test_a_load_in_three_ways(tiny, tmp_path):
    words = ["--device", "cpu", "--seconds", 1, "--rounds", 1, "--loads", "0.5,1.5"]
    run("serve", tiny, *words, "--steps", "2,5", "--as-device", "0.004,0.001", "--out", tmp_path)
    found = json.loads((tmp_path / "serve.json").read_text())
    assert [each["load"] for each in found["loads"]] == [0.5, 1.5]
    for each in found["loads"]:
        counts = {way["pictures"] for way in each["ways"].values()}
        assert len(counts) == 1, "every way paints the same stream"
        assert set(each["ways"]) == {"one by one", "by requests", "by steps"}
        assert each["mean_to_p95_of_requests"] > 0 and each["per_second_to_requests"] > 0
    assert found["as_device"] == [0.004, 0.001]
    assert set(found["capacities_per_second"]) == {"one by one", "by requests", "by steps"}
    assert min(found["capacities_per_second"].values()) > 0


@pytest.mark.parametrize(
    "make", [lambda p: Together(p, 1), lambda p: Together(p, 4), lambda p: BySteps(p, 4)]
)
def test_every_way_paints_all_that_comes(tiny, make):
    with Pipeline.load(tiny, "onnxruntime", "cpu") as pipeline:
        stream = arrivals(pipeline, 60, 1, (2, 5), [(32, 32), (64, 64)], random.Random(1).randrange(99))
        found = play(make(pipeline), stream)
    assert len(found.seconds) == len(stream) > 20
    assert min(found.seconds) > 0
    assert found.whole > 0
