import math

import pytest

from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.rules import Guidance
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.tasks.request import Request


@pytest.fixture(scope="module")
def contract(tiny):
    return manifest.read(tiny)


def without_guidance(contract):
    return contract.model_copy(update={"guidance": Guidance(kind="none", default=None, negative=None)})


def test_defaults_are_the_bundles(contract):
    request = Request.of(contract, "a")
    assert (request.width, request.height, request.grid) == (48, 32, (2, 3))
    assert (request.steps, request.guidance, request.seeds, request.batch) == (3, 3.5, (0,), 1)


def test_pictures_are_counted_prompt_by_prompt(contract):
    request = Request.of(contract, ["a", "b"], count=2, seed=7)
    assert request.prompts == ("a", "a", "b", "b")
    assert request.seeds == (7, 8, 9, 10)


def test_own_seeds_for_every_picture(contract):
    assert Request.of(contract, ["a", "b"], seed=[5, 5]).seeds == (5, 5)
    with pytest.raises(RequestError, match="1 seeds are given for 2 pictures"):
        Request.of(contract, ["a", "b"], seed=[5])


def test_no_seed_draws_one(contract):
    drawn = {Request.of(contract, "a", seed=None).seeds[0] for _ in range(8)}
    assert len(drawn) > 1


def test_batches_cover_all_pictures(contract):
    request = Request.of(contract, "a", count=5, batch=2)
    assert list(request.batches()) == [slice(0, 2), slice(2, 4), slice(4, 5)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": []}, "no prompt"),
        ({"prompt": "\udcff"}, "not valid Unicode"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**64}, "seeds are 0 to"),
        ({"seed": 2**64 - 1, "count": 2}, "seeds are 0 to"),
        ({"steps": 0}, "steps is 0"),
        ({"count": 0}, "count is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"guidance": math.nan}, "not a finite number"),
        ({"guidance": math.inf}, "not a finite number"),
        ({"size": (50, 32)}, "the nearest is 48x32"),
    ],
)
def test_what_cannot_be_done_is_said(contract, wrong, message):
    with pytest.raises(RequestError, match=message):
        Request.of(contract, **{"prompt": "a", **wrong})


def test_guidance_for_a_model_without_it(contract):
    assert Request.of(without_guidance(contract), "a").guidance is None
    with pytest.raises(RequestError, match="has no guidance"):
        Request.of(without_guidance(contract), "a", guidance=3.5)


def test_control_bundles_are_refused(contract):
    controlled = contract.model_copy(update={"tasks": ["control"], "variant": "canny"})
    with pytest.raises(RequestError, match="control picture; give it with --control or --canny"):
        Request.of(controlled, "a")
