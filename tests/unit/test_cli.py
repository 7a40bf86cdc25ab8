import json
import os
import pty
import subprocess
import sys

import pytest
import tiny_bundle
from click.testing import CliRunner
from PIL import Image

from flux_trt.runtime.cli import main


def run(*arguments, **more):
    return CliRunner().invoke(main, ["generate", *map(str, arguments)], **more)


def fault(result):
    """The one line of an expected fault."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def test_one_picture(tiny, tmp_path):
    out = tmp_path / "a.png"
    result = run(tiny, "a red circle", "-o", out, "--size", "64x32", "--steps", 2, "--seed", 4)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{out}\n", "")
    with Image.open(out) as image:
        assert image.size == (64, 32)
        assert json.loads(image.info["flux_trt"])["seed"] == 4


def test_several_pictures_are_numbered_and_json_is_one_object(tiny, tmp_path):
    result = run(tiny, "a", "", "-n", 2, "-o", tmp_path / "a.png", "--json", "--batch", 3)
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["device"] in ("cpu", "cuda")
    assert [each["path"] for each in report["pictures"]] == [str(tmp_path / f"a-{k}.png") for k in range(4)]
    assert [each["prompt"] for each in report["pictures"]] == ["a", "a", "", ""]
    assert [each["seed"] for each in report["pictures"]] == [0, 1, 2, 3]
    assert set(report["pictures"][0]["seconds"]) == {"encode", "condition", "denoise", "decode"}
    assert sorted(each.name for each in tmp_path.iterdir()) == [f"a-{k}.png" for k in range(4)]


def test_prompts_from_standard_input(tiny, tmp_path):
    result = run(tiny, "-", "-o", tmp_path / "a.png", "--json", input="a red\nblue\n")
    assert [each["prompt"] for each in json.loads(result.stdout)["pictures"]] == ["a red", "blue"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "50x32"], "the nearest is 48x32"),
        (["--guidance", "nan"], "not a finite number"),
        (["-o", "nowhere/a.png"], "the folder nowhere does not exist"),
        (["-o", "a.gif"], "a.gif is not a .png, .jpg, .jpeg or .webp name"),
    ],
)
def test_expected_faults_are_one_line(tiny, arguments, message):
    assert message in fault(run(tiny, "a", *arguments))


def test_a_folder_is_no_output(tiny, tmp_path):
    (tmp_path / "a.png").mkdir()
    assert "is a folder" in fault(run(tiny, "a", "-o", tmp_path / "a.png"))


def test_the_output_is_checked_before_the_bundle(tmp_path):
    assert "does not exist" in fault(run(tmp_path / "no-bundle", "a", "-o", tmp_path / "no" / "a.png"))
    assert "no bundle.json in" in fault(run(tmp_path / "no-bundle", "a", "-o", tmp_path / "a.png"))


def test_nothing_is_written_when_painting_fails(tmp_path):
    root = tiny_bundle.build(tmp_path / "wild", rate=-1e30)
    (tmp_path / "out").mkdir()
    line = fault(run(root, "a", "-o", tmp_path / "out" / "a.png"))
    assert "not finite after step 2 of 3" in line
    assert list((tmp_path / "out").iterdir()) == []


def test_tampering_is_found_and_the_check_can_be_skipped(tmp_path):
    root = tiny_bundle.build(tmp_path / "bundle")
    (root / "tokenizers" / "t5.json").write_text((root / "tokenizers" / "t5.json").read_text()[::-1])
    assert "t5.json is not the file that was built" in fault(run(root, "a", "-o", tmp_path / "a.png"))
    unchecked = run(root, "a", "-o", tmp_path / "a.png", "--no-check")
    assert "t5.json is not a tokenizer" in fault(unchecked)


@pytest.mark.parametrize(
    "arguments",
    [
        ["a", "--size", "64"],
        ["a", "--size", "64x-32"],
        ["a", "--steps", "0"],
        ["a", "--seed", "-1"],
        ["a", "--count", "0"],
        ["a", "--device", "tpu"],
        ["a", "--unknown"],
        [],
    ],
)
def test_usage_faults_exit_with_2(tiny, arguments):
    result = run(tiny, *arguments)
    assert result.exit_code == 2
    assert "Usage: main generate" in result.stderr


def test_bugs_keep_their_traceback(tiny, tmp_path, monkeypatch):
    def bug(*arguments):
        raise KeyError("a bug")

    monkeypatch.setattr("flux_trt.runtime.sampling.noise.Generator.latents", bug)
    result = run(tiny, "a", "-o", tmp_path / "a.png")
    assert isinstance(result.exception, KeyError)


def test_cut_text_is_one_line_on_stderr(tiny, tmp_path):
    """In a process of its own: pytest's log handlers would take the line."""
    command = [sys.executable, "-c", "from flux_trt.runtime.cli import main; main()", "generate"]
    prompt = "a red circle left blue"
    found = subprocess.run(
        [*command, tiny, prompt, "-o", tmp_path / "a.png"], capture_output=True, text=True, check=True
    )
    assert found.stdout == f"{tmp_path / 'a.png'}\n"
    assert found.stderr.splitlines() == [
        "warning: clip reads only 6 tokens; not read: 'blue'",
        "warning: t5 reads only 6 tokens; not read: 'blue'",
    ]


def test_bars_go_to_the_terminal_and_names_to_the_pipe(tiny, tmp_path):
    terminal, end = pty.openpty()
    command = [sys.executable, "-c", "from flux_trt.runtime.cli import main; main()", "generate"]
    found = subprocess.run(
        [*command, tiny, "a", "-o", tmp_path / "a.png"],
        stdout=subprocess.PIPE,
        stderr=end,
        text=True,
        check=True,
    )
    os.close(end)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert found.stdout == f"{tmp_path / 'a.png'}\n"
    assert "denoise" in shown


def test_on_a_gpu_the_needs_are_printed_before_anything_is_loaded(tiny, tmp_path, monkeypatch):
    import shutil

    import simulator_bundle
    from simulator_cuda import CudaSimulator

    shutil.copytree(tiny, tmp_path / "bundle")
    simulator_bundle.add_engines(tmp_path / "bundle", weights=1 << 24)
    cuda = CudaSimulator(memory=1 << 26)

    def connect(name, device, bundle, memory, check, threads, compute):
        assert (name, device, check) == ("tensorrt-rtx", "auto", True)
        return simulator_bundle.backend(bundle.root, cuda, memory)

    monkeypatch.setattr("flux_trt.runtime.session.connect", connect)
    arguments = [tmp_path / "bundle", "a", "-o", tmp_path / "a.png", "--backend", "tensorrt-rtx"]
    refused = run(*arguments)
    first, line = refused.stderr.splitlines()
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert first == (
        "--memory resident needs 0.08 GB and the activations of 0.07 GB free on Simulated GPU (sm 8.9) "
        "(weights in GB, at once: clip 0.02, t5 0.02, conditioner 0.02, denoiser 0.02, vae_decoder 0.02; "
        "pictures 0.00)"
    )
    assert line.startswith("Error: --memory resident needs 0.08 GB")
    assert line.endswith("; use --memory sequential")
    assert cuda.calls["cudaMalloc"] == 0
    painted = run(*arguments, "--memory", "sequential", "--json")
    assert painted.exit_code == 0, painted.output
    assert json.loads(painted.stdout)["device"] == "cuda"
    assert "--memory sequential needs 0.02 GB" in painted.stderr


def test_modes_that_a_backend_lacks(tiny, tmp_path):
    line = fault(
        run(tiny, "a", "-o", tmp_path / "a.png", "--backend", "onnxruntime", "--memory", "streaming")
    )
    assert "onnxruntime cannot stream weights; use --memory sequential" in line
    line = fault(run(tiny, "a", "-o", tmp_path / "a.png", "--backend", "tensorrt", "--device", "cpu"))
    assert "tensorrt runs a bundle's engines on a GPU; use --backend onnxruntime" in line


def test_sequential_paints_the_same_on_a_cpu(tiny, tmp_path):
    files = [tmp_path / f"{memory}.png" for memory in ("resident", "sequential")]
    for path in files:
        assert run(tiny, "a red", "-o", path, "--memory", path.stem, "--device", "cpu").exit_code == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_version():
    assert CliRunner().invoke(main, ["--version"]).output.startswith("flux-run, version ")


PROGRAMS = {
    "flux-run": "flux_trt.runtime.cli",
    "flux-export": "flux_trt.exporter.cli",
    "flux-serve": "flux_trt.serving.cli",
    "flux-bench": "flux_trt.bench.cli",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_verbose_version_says_what_a_report_needs(program):
    import importlib.metadata

    command = importlib.import_module(PROGRAMS[program]).main
    plain = CliRunner().invoke(command, ["--version"])
    for words in (["--version", "--verbose"], ["--verbose", "--version"]):
        found = CliRunner().invoke(command, words)
        assert found.exit_code == 0
        lines = found.output.splitlines()
        assert lines[0] == plain.output.strip()
        assert lines[0].startswith(f"{program}, version ")
        told = {line[:22].strip(): line[23:] for line in lines[1:]}
        assert told["numpy"] == importlib.metadata.version("numpy")
        assert "CPUExecutionProvider" in told["onnxruntime providers"]
        assert {"python", "system", "CPU", "GPU", "OpenVINO devices", "TensorRT", "TensorRT-RTX"} <= set(told)
    alone = CliRunner().invoke(command, ["--verbose", *(["bundle"] if program == "flux-serve" else [])])
    assert (alone.exit_code, "--verbose goes with --version" in alone.output) == (2, True)


def test_what_fails_on_a_machine_is_said_and_the_rest_too(monkeypatch):
    from flux_trt.runtime import about

    def broken():
        raise OSError("libcuda.so.1 is from another century\nand more")

    monkeypatch.setitem(about._DEVICES, "GPU", broken)
    found = dict(about.facts())
    assert found["GPU"] == "fails: OSError: libcuda.so.1 is from another century"
    assert "CPUs for this process" in found["CPU"]
