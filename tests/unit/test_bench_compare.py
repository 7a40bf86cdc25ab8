"""Statistics of measurements: what a series comes to, when a run is slower, when it is too noisy to say."""

import numpy as np
import pytest
from bench_runs import case, painter, result
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flux_trt.bench.cli import main
from flux_trt.bench.compare import compare, ratio_of_medians
from flux_trt.bench.errors import BenchError, NoiseError
from flux_trt.bench.run import _expect_quiet, batch, turn
from flux_trt.bench.schema import Series, save

QUIET = np.random.default_rng(5).normal(100, 1, 12)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=60))
def test_a_series_is_what_numpy_says(values):
    found = Series.of(values)
    expected = np.percentile(np.array(values), [50, 90, 99])
    assert found.n == len(values) == len(found.samples)
    assert np.allclose([found.p50, found.p90, found.p99], expected, rtol=1e-6, atol=1e-6)
    assert found.min <= found.p50 <= found.p90 <= found.p99
    assert found.mean == pytest.approx(sum(values) / len(values), rel=1e-6, abs=1e-6)


def test_spread_is_not_moved_by_one_outlier():
    steady = [10.0, 10.1, 9.9, 10.0, 10.05, 9.95, 10.0, 10.02, 9.98, 10.0]
    assert Series.of([*steady, 500.0]).spread < 0.02
    assert Series.of([10, 20] * 5).spread == pytest.approx(10 / 15, abs=1e-3)


def test_rounds_give_every_picture_its_own_seed_and_every_painter_its_turn():
    prompts, seeds = zip(*(batch(["a", "b", "c"], 2, index) for index in range(3)), strict=True)
    assert prompts == (["a", "b"], ["c", "a"], ["b", "c"])
    assert [seed for each in seeds for seed in each] == list(range(6))
    firsts = [turn(["x", "y", "z"], index)[0] for index in range(6)]
    assert firsts == ["x", "y", "z"] * 2


def test_a_ratio_and_its_interval():
    ratio, (low, high) = ratio_of_medians(QUIET, QUIET * 1.3)
    assert ratio == pytest.approx(1.3)
    assert 1.2 < low < 1.3 < high < 1.4
    assert ratio_of_medians(QUIET, QUIET * 1.3) == (ratio, (low, high)), "a verdict repeats"


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(60):
        _, (low, high) = ratio_of_medians(rng.normal(100, 5, 15), rng.normal(100, 5, 15))
        covered += low <= 1 <= high
    assert covered >= 55


def test_a_run_is_no_regression_of_itself():
    same = result(painter("ours", QUIET), painter("diffusers", QUIET * 3))
    assert not any(each.regression for each in compare(same, same, bound=1.0))


@pytest.mark.parametrize(
    ("factor", "bound", "regression"),
    [(1.3, 1.05, True), (1.3, 1.5, False), (1.03, 1.05, False), (0.7, 1.05, False)],
)
def test_a_slowed_run(factor, bound, regression):
    a, b = result(painter("ours", QUIET)), result(painter("ours", QUIET * factor))
    (picture, step) = compare(a, b, bound)
    assert picture.regression == step.regression == regression
    assert picture.ratio == pytest.approx(factor, rel=1e-4)


def test_chance_is_no_regression():
    """The medians are 8 % apart, but the samples spread over 80 %."""
    wide = np.array([60, 140, 70, 130, 80, 120, 90, 110, 100, 95.0])
    a, b = result(painter("ours", wide)), result(painter("ours", wide * 1.08))
    assert not any(each.regression for each in compare(a, b, bound=1.05))


@pytest.mark.parametrize(
    ("before", "after", "regression"),
    [
        ({"psnr": 90.0}, {"psnr": 62.0}, False),
        ({"psnr": 90.0}, {"psnr": 35.0}, True),
        ({"score": 0.90, "pictures": 256}, {"score": 0.89, "pictures": 256}, False),
        ({"score": 0.90, "pictures": 256}, {"score": 0.70, "pictures": 256}, True),
        ({"score": 1.0, "pictures": 8}, {"score": 0.0, "pictures": 8}, True),
    ],
)
def test_a_fast_wrong_answer_is_a_regression(before, after, regression):
    a, b = result(painter("ours", QUIET, **before)), result(painter("ours", QUIET / 2, **after))
    found = {each.what: each.regression for each in compare(a, b, bound=1.05)}
    assert found.pop("picture, ms") is found.pop("step, ms") is False
    assert list(found.values()) == [regression]


@pytest.mark.parametrize(("lost", "regression"), [(1.0, False), (1.4, True)])
def test_shares_of_a_peers_time_hold_on_a_slower_machine(lost, regression):
    """The other machine takes three times as long, and every round its own time: that is no regression."""
    machine = 3 * np.random.default_rng(6).uniform(0.8, 1.6, len(QUIET))
    a = result(painter("ours", QUIET), painter("diffusers", QUIET * 3))
    b = result(painter("ours", QUIET * machine * lost), painter("diffusers", QUIET * 3 * machine))
    (found,) = compare(a, b, bound=1.2, relative_to="diffusers")
    assert (found.painter, found.what, found.regression) == ("ours", "picture, x diffusers", regression)
    assert (found.a, found.ratio) == (pytest.approx(1 / 3, rel=1e-4), pytest.approx(lost, rel=1e-4))


@pytest.mark.parametrize("names", [["ours"], ["diffusers"], ["ours", "compile"]])
def test_shares_need_that_peer_and_somebody_else(names):
    run = result(*(painter(name, QUIET) for name in names))
    with pytest.raises(BenchError, match="not measured with diffusers and another; add it with --peer"):
        compare(run, run, bound=1.2, relative_to="diffusers")


@pytest.mark.parametrize("what", ["hardware", "bundle", "cases"])
def test_runs_that_are_not_alike_are_not_compared(what):
    a = result(painter("ours", QUIET))
    if what == "hardware":
        changed = {
            "about": a.about.model_copy(
                update={"hardware": a.about.hardware.model_copy(update={"cores": 64})}
            )
        }
    elif what == "bundle":
        other = a.about.bundle.model_copy(update={"digest": "f" * 64})
        changed = {"about": a.about.model_copy(update={"bundle": other})}
    else:
        changed = {"cases": [*a.cases, case(painter("ours", QUIET), steps=99)]}
    b = a.model_copy(update=changed)
    with pytest.raises(BenchError, match=f"different {what}.*--anyway"):
        compare(a, b, 1.05)
    assert compare(a, b, 1.05, anyway=True)


def test_runs_with_nothing_in_common():
    a, b = result(painter("ours", QUIET)), result(painter("theirs", QUIET))
    with pytest.raises(BenchError, match="in common"):
        compare(a, b, 1.05)


def test_the_command_exits_1_on_a_regression_only(tmp_path):
    for name, factor in (("a", 1.0), ("slow", 1.4)):
        save(tmp_path / f"{name}.json", result(painter("ours", QUIET * factor)))
    run = CliRunner().invoke
    slow = run(main, ["compare", str(tmp_path / "a.json"), str(tmp_path / "slow.json")])
    assert slow.exit_code == 1
    assert "REGRESSION" in slow.output
    assert "Error" not in slow.output
    assert run(main, ["compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]).exit_code == 0
    words = ["compare", str(tmp_path / "a.json"), str(tmp_path / "slow.json"), "--bound", "2"]
    assert run(main, words).exit_code == 0


def test_noise_is_not_reported():
    noisy = {"ours": [100, 150, 200, 100], "steady": QUIET}
    with pytest.raises(NoiseError, match=r"^whole pictures of ours at 64x64 spread by \d+%"):
        _expect_quiet("64x64", noisy, allowed=False)
    assert _expect_quiet("64x64", noisy, allowed=True)
    assert not _expect_quiet("64x64", {"steady": QUIET}, allowed=False)
