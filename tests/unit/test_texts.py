"""Prompts are encoded as they are needed, each once where that is possible, and few are kept."""

import numpy as np
import pytest

from flux_trt.runtime import Pipeline, painting
from flux_trt.runtime.tasks.request import Request
from flux_trt.runtime.texts import Texts


class Encoder:
    """Gives each prompt its length and its company's size; counts."""

    def __init__(self):
        self.calls = []

    def __call__(self, groups):
        self.calls += [list(group) for group in groups]
        return [{"text": np.array([[len(p), len(group)] for p in group], np.float32)} for group in groups]


def texts(prompts, company, keep):
    encoder, told = Encoder(), []
    return Texts(prompts, company, keep, encoder, lambda *seen: told.append(seen)), encoder, told


def test_the_first_prompt_waits_for_no_other():
    prompts = [f"prompt {number}" for number in range(3000)]
    found, encoder, told = texts(prompts, 1, 32)
    found.bring(prompts[:1])
    assert (encoder.calls, told) == ([[prompts[0]]], [(1, 3000)])
    for prompt in prompts:
        found.bring([prompt])
        assert found.of([prompt])[0]["text"].tolist() == [[len(prompt), 1]]
        assert len(found._kept) <= 32
    assert encoder.calls == [[prompt] for prompt in prompts]
    assert told[-1] == (3000, 3000)


def test_a_negative_prompt_is_encoded_once_for_all():
    prompts = [f"prompt {number}" for number in range(100)]
    found, encoder, _ = texts([*prompts, "bad"], 1, 4)
    for prompt in prompts:
        found.bring([prompt, "bad"])
        assert found.of([prompt, "bad"])[0]["text"][:, 0].tolist() == [len(prompt), 3]
    assert encoder.calls.count(["bad"]) == 1
    assert len(encoder.calls) == 101


def test_what_was_dropped_comes_back_with_the_same_neighbours():
    prompts = list("abcdef")
    found, encoder, told = texts([*prompts, "a"], 4, 4)
    for prompt in [*prompts, "a"]:
        found.bring([prompt])
        found.of([prompt])
    assert encoder.calls == [list("abcd"), list("ef"), list("abcd")]
    assert told == [(4, 6), (6, 6), (6, 6)]


def test_more_are_kept_when_more_are_needed_at_once():
    prompts = [f"{number}" for number in range(10)]
    found, encoder, _ = texts(prompts, 1, 2)
    found.bring(prompts)
    assert found.of(prompts)[0]["text"].shape == (10, 2)
    assert len(encoder.calls) == 10


def test_encoders_that_take_turns_at_being_loaded_are_called_ahead():
    batches = [[f"{number}"] for number in range(10)]
    found, encoder, _ = texts([prompt for batch in batches for prompt in batch], 1, 4)
    lengths = []
    for index, batch in enumerate(batches):
        found.bring(batch, iter(batches[index + 1 :]))
        lengths.append(len(encoder.calls))
    assert lengths == [4, 4, 4, 4, 8, 8, 8, 8, 10, 10]


@pytest.fixture
def counted(tiny, monkeypatch):
    """A pipeline, and what its text encoder T5 has been called with."""
    with Pipeline.load(tiny, "onnxruntime", "cpu") as pipeline:
        calls, graph = [], pipeline._graphs["t5"]
        run = graph.run
        monkeypatch.setattr(graph, "run", lambda *given: calls.append(None) or run(*given))
        yield pipeline, calls


def test_the_first_picture_comes_before_the_last_prompt_is_encoded(counted):
    pipeline, calls = counted
    request = Request.of(pipeline.bundle.manifest, [f"a {number}" for number in range(3000)])
    painting = pipeline.paint(request)
    next(painting)
    assert len(calls) == 1
    for _ in range(3):
        next(painting)
    assert len(calls) == 4


def test_pictures_of_one_prompt_encode_it_once(counted):
    pipeline, calls = counted
    pipeline.generate(["a", "red"], count=40)
    assert len(calls) == 2


@pytest.mark.parametrize("keep", [1, 32])
@pytest.mark.parametrize("batch", [1, 3])
def test_pictures_do_not_depend_on_what_is_kept(bundle, monkeypatch, keep, batch):
    """They are those of prompts that were all encoded first, in the same company."""
    prompts = ["a red circle", "a blue square at the left", "green", "a red circle", "a cross"]
    with Pipeline.load(bundle("flux-nano"), "onnxruntime", "cpu") as pipeline:
        asked = {"size": (32, 32), "steps": 2, "batch": batch, "guidance": 1.0}
        monkeypatch.setattr(painting, "PROMPTS", 100)
        exact = [np.asarray(each) for each in pipeline.generate(prompts, **asked)]
        monkeypatch.setattr(painting, "PROMPTS", keep)
        found = [np.asarray(each) for each in pipeline.generate(prompts, **asked)]
    np.testing.assert_array_equal(found, exact)
