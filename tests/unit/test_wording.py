"""What a prompt's writer is told: of words that no encoder reads, and of weights that are read as words."""

import pytest

from flux_trt.runtime import Pipeline
from flux_trt.runtime.bundle.window import Window
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.tasks.wording import cut, literal, short


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a (red:1.3) circle", "(red:1.3)"),
        ("(a red circle: .8), best", "(a red circle: .8)"),
        ("a ((red)) circle", "((red))"),
        ("a [[red]] circle", "[[red]]"),
        ("a {{red}} circle", "{{red}}"),
        ("a circle <lora:red_things:0.7>", "<lora:red_things:0.7>"),
        ("a red++ circle", "red++"),
        ("a (red circle)1.4, clean", "(red circle)1.4"),
        ("a (red circle)-- here", "(red circle)--"),
        ("a [red:blue:0.5] circle", "[red:blue:0.5]"),
    ],
)
def test_weights_of_other_tools_are_told_of(prompt, found):
    (line,) = literal([prompt, prompt])
    assert line.startswith(f"{found!r} in a prompt is read as plain text")


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle (small) on white",
        "a sign that says 'open 9:30'",
        "a ratio of 16:9, (wide)",
        "C++ code on a screen--dark",
        "[a list], {a set}, <html>",
        "e-mail -- and more; 1.5 m",
        "(it is 9 o'clock)",
        "",
    ],
)
def test_plain_words_are_not(prompt):
    assert list(literal([prompt])) == []


def test_a_long_text_is_said_in_short():
    assert short("x" * 80) == "x" * 80
    assert short("x" * 81) == "x" * 80 + "..."


@pytest.fixture(scope="module")
def pipeline(tiny):
    with Pipeline.load(tiny, "onnxruntime", device="cpu") as loaded:
        yield loaded


def test_it_is_said_who_still_reads_the_rest(pipeline):
    """Two windows of different lengths, as CLIP's 77 and T5's 512 tokens are."""
    bundle = pipeline.bundle
    spec = bundle.tokenizer(bundle.manifest.encoders[0].tokenizer)
    wide = spec.pad.model_copy(update={"multiple": 12, "most": 12})
    windows = {
        "short": Window(bundle.root, spec),
        "long": Window(bundle.root, spec.model_copy(update={"pad": wide})),
    }
    prompts = ["a red circle", "a red circle blue square", "a red circle " * 3 + "a blue square"]
    assert list(cut({name: window.of(prompts) for name, window in windows.items()})) == [
        "short reads only 6 tokens; not read: 'square'; long still reads all of it",
        "short reads only 6 tokens; not read: 'red circle a red circle a blue square'",
        "long reads only 12 tokens; not read: 'blue square'",
    ]


def test_a_second_text_is_for_the_second_of_two_encoders(pipeline):
    with pytest.raises(RequestError, match="3 texts are given as prompt_2 for 2 prompts"):
        pipeline.generate(["a", "b"], prompt_2=["a", "b", "c"])
    with pytest.raises(RequestError, match="negative_2 is given without a negative prompt"):
        pipeline.generate("a", negative_2="b")
