"""Turns are taken at the machine's full speed, as long as the patience lasts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from flux_trt.bench import pace
from flux_trt.bench.pace import Pace

FAST, SLOW = 0.010, 0.015


@pytest.fixture(autouse=True)
def _no_naps(monkeypatch):
    monkeypatch.setattr(pace, "SETTLE", 0.0)
    monkeypatch.setattr(pace, "PAUSE", 0.001)


def looks(*seconds: float) -> Iterator[float]:
    """These, then the last one for ever."""
    yield from seconds
    while True:
        yield seconds[-1]


def begun(patience: float, *seconds: float) -> Pace:
    """A pace that has seen the machine fast three times, and then sees these."""
    script = looks(FAST, FAST, FAST, *seconds)
    found = Pace(patience, lambda: next(script))
    assert all(found.full() for _ in range(3))
    return found


def taker(values: Sequence[str]) -> Iterator[str]:
    """One turn after the other."""
    return iter(values)


def test_a_turn_at_full_speed_is_taken_once():
    turns = taker(["first", "second"])
    held = begun(1.0, FAST)
    assert held.hold(lambda: next(turns)) == "first"
    assert held.retaken == 0


def test_a_turn_that_ends_on_a_slow_machine_is_taken_again():
    turns = taker(["slowed", "second"])
    held = begun(1.0, FAST, SLOW, FAST, FAST)
    assert held.hold(lambda: next(turns)) == "second"
    assert held.retaken == 1
    assert held.patience < 1.0


def test_a_turn_waits_until_the_machine_is_fast():
    turns, seen = taker(["first"]), [FAST, FAST, FAST, SLOW, SLOW, FAST, FAST]
    script = iter(seen)
    held = Pace(1.0, lambda: next(script))
    assert [held.full() for _ in range(3)] == [True] * 3
    assert held.hold(lambda: next(turns)) == "first"
    assert held.retaken == 0
    assert list(script) == []


@pytest.mark.parametrize("patience", [0.0, 0.02])
def test_without_patience_a_turn_is_taken_as_it_comes(patience):
    turns = taker(["first", "second", "third"])
    held = begun(patience, SLOW)
    assert held.hold(lambda: next(turns)) == "first"
    assert held.hold(lambda: next(turns)) == "second"
    assert held.retaken == 0


def test_one_lucky_look_sets_no_standard():
    held = begun(1.0, FAST / 2, FAST, FAST / 2, FAST / 2, FAST)
    assert [held.full() for _ in range(5)] == [True, True, True, True, False]


def test_a_look_takes_milliseconds_and_is_the_same_work_each_time():
    found = sorted(pace.look() for _ in range(9))
    assert 0.0003 < found[0] < 0.5
    assert found[4] < 20 * found[0]
