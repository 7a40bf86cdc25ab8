"""A schedule of the caller's own: what is accepted, and the lines of what is not."""

import math

import numpy as np
import pytest
from family_rules import DEV, FLUX2_SCHEDULE, FLUX3_SCHEDULE, SCHNELL

from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.tasks.levels import Levels


def asked(rule=DEV, steps=None, shift=None, sigmas=None):
    return Levels.asked(rule, steps, 28, shift, sigmas)


@pytest.mark.parametrize("rule", [DEV, SCHNELL, FLUX2_SCHEDULE, FLUX3_SCHEDULE])
def test_a_shift_replaces_the_bundles_and_keeps_its_rounding(rule):
    found = asked(rule, steps=4, shift=2.5)
    assert found.rule.round == rule.round
    even = np.linspace(1, 0.25, 4)
    np.testing.assert_allclose(found.sigmas(77), [*(2.5 * even / (1 + 1.5 * even)), 0], rtol=1e-6)
    np.testing.assert_array_equal(found.sigmas(77), found.sigmas(4096))


def test_levels_are_walked_as_they_are_without_a_shift():
    found = asked(shift=1, sigmas=np.float32([1, 0.5, 0.125, 0]))
    assert found.steps == 3
    np.testing.assert_array_equal(found.sigmas(256), np.float32([1, 0.5, 0.125, 0]))


def test_the_number_of_steps():
    assert asked().steps == 28
    assert asked(steps=3).steps == 3
    assert asked(steps=2, sigmas=[0.9, 0.1]).steps == 2
    with pytest.raises(RequestError, match="2 sigmas are given for 3 steps; leave --steps out"):
        asked(steps=3, sigmas=[0.9, 0.1])


@pytest.mark.parametrize(
    "sigmas", [[], [0], [1, 1], [0.5, 0.6], [1.5, 1], [1, 0.5, 0, 0], [1, -0.5], [math.nan], [math.inf, 1]]
)
def test_what_is_no_schedule(sigmas):
    with pytest.raises(RequestError, match="are no schedule; they must fall from at most 1 to above 0"):
        asked(sigmas=sigmas)


@pytest.mark.parametrize("sigmas", ["1,0.5", ["a"], 0.5, [None]])
def test_what_is_no_list_of_numbers(sigmas):
    with pytest.raises(RequestError, match="sigmas are not a list of numbers; give noise levels"):
        asked(sigmas=sigmas)


@pytest.mark.parametrize("shift", [0, -1, math.nan, math.inf])
def test_what_is_no_shift(shift):
    with pytest.raises(RequestError, match="is not possible; it must be above 0"):
        asked(shift=shift)


@pytest.mark.parametrize("shift", ["a", [1], None.__class__])
def test_what_is_no_number(shift):
    with pytest.raises(RequestError, match="is not a number; give one above 0"):
        asked(shift=shift)
