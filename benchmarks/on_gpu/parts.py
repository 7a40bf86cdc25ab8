"""What is done on a GPU, in this order: what shows most for its time comes first."""

from __future__ import annotations

from dataclasses import dataclass

NANO = "examples/flux-nano"
PYTEST = ("{python}", "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "-m", "gpu", "-rs")
PYTEST += ("--junitxml={work}/junit.xml",)


@dataclass(frozen=True)
class Part:
    """A check or a timing: a command with a limit.

    Words of the command may hold {python}, {bin}, {work}, {out}, {flavour}, {sm} and {seconds}.
    """

    name: str
    shows: tuple[str, ...]
    """Lines of the table in docs/gpu.md, by their beginnings, that it settles."""
    command: tuple[str, ...]
    seconds: int
    """It is stopped after so long."""
    least: int = 20
    """It is not begun with less than this left."""
    tests: bool = False
    """Whether pytest runs it: it passes by its tests, and each is told."""


def checks(name: str, file: str, seconds: int, *shows: str, only: str = "") -> Part:
    """A file of tests/gpu as a part."""
    chosen = ("-k", only) if only else ()
    return Part(name, shows, (*PYTEST, f"tests/gpu/{file}", *chosen), seconds, tests=True)


PARTS = (
    checks("device layer", "test_device.py", 120, "the device layer"),
    checks(
        "onnxruntime with CUDA",
        "test_cuda.py",
        240,
        "that onnxruntime's CUDA provider lets its work be captured from outside",
    ),
    checks("kernel and plugin", "test_rope.py", 240, "that a plan with the RoPE plugin loads"),
    checks(
        "TensorRT",
        "test_tensorrt.py",
        420,
        "that TensorRT's kernels compute what the graph says",
        "that TensorRT and TensorRT-RTX let their work be captured",
        "that an engine gives the weights' memory back",
        "that streamed weights are brought to the GPU",
        "that the arena may be as small",
        "that `is_stream_capturable` answers",
        "that a swapped LoRA is seen by a recording",
        "that steps of several pictures, recorded as one",
    ),
    Part(
        "flux-nano beside diffusers",
        ("how fast they are", "that they gain what they should"),
        (
            *("{python}", "benchmarks/gpu_nano.py", "--flavour", "{flavour}", "--sm", "{sm}"),
            *("--work", "{work}", "--out", "{out}"),
        ),
        300,
        least=90,
    ),
    Part(
        "ladder",
        ("that FP8 attention pays",),
        (
            *("{python}", "benchmarks/gpu_steps.py", "ladder", "--flavour", "{flavour}"),
            *("--work", "{work}", "--out", "{out}", "--seconds", "{seconds}"),
        ),
        240,
        least=60,
    ),
    Part(
        "blocks of FLUX.1's size",
        ("that FP8 attention pays",),
        (
            *("{python}", "benchmarks/gpu_steps.py", "blocks", "--flavour", "{flavour}"),
            *("--work", "{work}", "--out", "{out}", "--seconds", "{seconds}"),
        ),
        420,
        least=120,
    ),
    Part(
        "kernel beside torch.compile",
        ("that a plan with the RoPE plugin loads",),
        ("{python}", "benchmarks/rope.py", "--out", "{out}"),
        180,
        least=60,
    ),
    Part(
        "FLUX.1 at full size",
        ("that reading a mapped plan needs no second copy", "how fast they are"),
        (
            *("{python}", "benchmarks/gpu_steps.py", "full", "--flavour", "{flavour}"),
            *("--work", "{work}", "--out", "{out}", "--seconds", "{seconds}"),
        ),
        900,
        least=240,
    ),
)
