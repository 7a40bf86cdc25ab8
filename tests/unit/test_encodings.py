"""Encoded prompts that are kept: the same bits, by what is read, within a bound, and warned of each time."""

import logging

import numpy as np
import pytest

from flux_trt.runtime import Pipeline
from flux_trt.runtime.encodings import Encodings
from flux_trt.runtime.stepwise import Stepwise

PROMPTS = "a", "a a a"
"""The small tokenizer tells their lengths apart, and no words."""


@pytest.fixture
def pipeline(tiny):
    with Pipeline.load(tiny, "onnxruntime", "cpu") as found:
        found.calls = []
        for name, _ in found._windows:
            graph = found.graphs[name]
            graph.run = lambda inputs, run=graph.run, name=name: found.calls.append(name) or run(inputs)
        yield found


def test_each_prompt_is_encoded_once(pipeline):
    encoders = len(pipeline.windows)
    first = [pipeline.encode([each]) for each in PROMPTS]
    assert len(pipeline.calls) == 2 * encoders, "a pipeline of its own keeps none"
    Stepwise(pipeline)
    pipeline.calls.clear()
    for _ in range(3):
        for prompt, exact in zip(PROMPTS, first, strict=True):
            found = pipeline.encode([prompt])
            for name, value in exact.items():
                np.testing.assert_array_equal(found[name], value)
    assert len(pipeline.calls) == 2 * encoders
    pipeline.spare()
    pipeline.encode([PROMPTS[0]])
    assert len(pipeline.calls) == 3 * encoders


def test_what_was_asked_for_last_is_kept_within_the_bound(pipeline):
    one = sum(each.nbytes for each in pipeline.encode(["a"]).values())
    pipeline.encodings = Encodings(3 * one)
    pipeline.calls.clear()
    for count in (1, 2, 3, 1, 2, 4, 1, 2):
        pipeline.encode(["a " * count])
    assert len(pipeline.calls) == 4 * len(pipeline.windows), "the third went, the first two stayed"
    assert pipeline.encodings._bytes <= 3 * one


def test_one_that_is_larger_than_the_bound_is_encoded_all_the_same(pipeline):
    exact = pipeline.encode(["a"])
    pipeline.encodings = Encodings(1)
    for name, value in pipeline.encode(["a"]).items():
        np.testing.assert_array_equal(value, exact[name])
    assert pipeline.encodings._bytes == 0


def test_what_was_not_read_is_told_each_time(pipeline, caplog):
    Stepwise(pipeline)
    long = "a very long prompt " * 99
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "flux_trt.runtime"):
            pipeline.encode([long])
        assert "reads only" in caplog.text


def test_the_end_that_was_not_read_does_not_tell_prompts_apart(pipeline):
    Stepwise(pipeline)
    pipeline.encode(["word " * 200])
    pipeline.calls.clear()
    pipeline.encode(["word " * 300])
    assert pipeline.calls == []
