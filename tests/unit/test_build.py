from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import NANO, write_bfl
from click.testing import CliRunner

from flux_trt.exporter.build import build
from flux_trt.exporter.cli import main
from flux_trt.exporter.families.flux1.variants import PARTS as STAGES
from flux_trt.exporter.families.flux1.variants import VARIANTS, tasks_of
from flux_trt.exporter.folder import digest, written_aside
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.errors import BuildError, CheckpointError

Get = Callable[..., Path]
HALF = ["conditioner"]
PLAIN = ["generate", "image", "inpaint", "edit"]


def test_a_bundle_holds_what_its_manifest_says(bundle: Get) -> None:
    root = bundle("flux-nano")
    found = manifest.read(root)
    on_disk = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    assert on_disk == {*found.files, manifest.NAME}
    for path, file in found.files.items():
        assert digest(root / path) == file
    assert (root / manifest.NAME).read_text() == found.dumps()
    assert (found.variant, found.tasks) == ("kontext", [*PLAIN, "reference"])
    assert (found.defaults.width, found.tokenizers["t5"].pad.most) == (64, 32)
    assert found.schedule.kind == "exponential"
    assert found.model.positions.axes == [16, 24, 24]


@pytest.mark.parametrize(
    ("variant", "stages", "expected"),
    [
        ("dev", STAGES, PLAIN),
        ("schnell", STAGES, PLAIN),
        ("kontext", STAGES, [*PLAIN, "reference"]),
        ("fill", STAGES, ["fill"]),
        ("depth", STAGES, ["control"]),
        ("dev", [each for each in STAGES if each != "vae_encoder"], ["generate"]),
        ("fill", [each for each in STAGES if each != "vae_encoder"], []),
        ("dev", HALF, []),
    ],
)
def test_a_manifest_says_what_a_bundle_can_do(variant: str, stages: list, expected: list) -> None:
    assert tasks_of(VARIANTS[variant], stages) == expected


def test_a_second_build_reuses_and_says_so(checkpoint: Get, tmp_path: Path) -> None:
    out, lines = tmp_path / "bundle", []
    source = str(checkpoint("dev-like"))
    first = build(source, out, stages=HALF)
    second = build(source, out, stages=["clip", *HALF], tell=lines.append)
    assert "conditioner: reused, nothing it is built from has changed" in lines
    assert not any(line.startswith("clip: reused") for line in lines)
    assert second.stages["conditioner"] == first.stages["conditioner"]
    assert digest(out / "conditioner.onnx") == second.files["conditioner.onnx"]
    lines.clear()
    build(source, out, stages=HALF, precision="fp16", tell=lines.append)
    assert not any("reused" in line for line in lines)


def test_a_damaged_stage_is_not_reused(checkpoint: Get, tmp_path: Path) -> None:
    out, lines = tmp_path / "bundle", []
    source = str(checkpoint("dev-like"))
    build(source, out, stages=HALF)
    with (out / "conditioner.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xaa")
    build(source, out, stages=HALF, tell=lines.append)
    assert not any("reused" in line for line in lines)


def test_identity_weights_are_linked_not_copied(checkpoint: Get, tmp_path: Path) -> None:
    """A BFL file in the bundle's precision: both halves of the transformer point into it."""
    file = write_bfl(checkpoint("dev-like"), tmp_path / "flux.safetensors")
    out = tmp_path / "bundle"
    found = build(str(file), out, stages=["conditioner", "denoiser"])
    linked = out / "transformer" / "flux.safetensors"
    assert linked.samefile(file)
    assert not linked.is_symlink()
    assert [stage.weights for stage in found.stages.values()] == [["transformer/flux.safetensors"]] * 2
    assert sum(f.bytes for p, f in found.files.items() if p.endswith(".onnx")) > 0
    assert list(out.glob("*.safetensors")) == []
    whole = build(str(file), out, stages=HALF, link=False)
    assert whole.stages["conditioner"].weights == ["conditioner.safetensors"]
    assert not (out / "transformer").exists()


def test_links_that_the_file_system_refuses_become_copies(
    checkpoint: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    file = write_bfl(checkpoint("dev-like"), tmp_path / "flux.safetensors")
    monkeypatch.setattr(os, "link", refuse)
    found = build(str(file), tmp_path / "bundle", stages=HALF)
    assert found.stages["conditioner"].weights == ["conditioner.safetensors"]


def test_a_failed_build_leaves_the_old_bundle(
    checkpoint: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "bundle"
    build(str(checkpoint("dev-like")), out, stages=HALF)
    before = {path: digest(path) for path in out.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError):
        build(str(tmp_path / "nowhere"), out)
    monkeypatch.setattr("flux_trt.exporter.build.attach", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(str(checkpoint("dev-like")), out, stages=HALF, precision="fp16")
    assert {path: digest(path) for path in out.rglob("*") if path.is_file()} == before
    assert list(tmp_path.glob(".*")) == []


def test_another_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(BuildError, match="exists and is not a bundle"), written_aside(tmp_path / "thesis"):
        pass
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"


def test_a_full_disk_is_told_before_any_work(
    checkpoint: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(BuildError, match="needs 0.0 GB and 0.0 GB are free; use --precision bf16"):
        build(str(checkpoint("dev-like")), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_overflow_fp16_are_named(checkpoint: Get, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = write_bfl(checkpoint("dev-like"), tmp_path / "flux.safetensors")
    tensors = load_file(file)
    tensors["txt_in.bias"][0] = 1e6
    save_file(tensors, file)
    with pytest.raises(BuildError, match="txt_in.bias has values that are not finite in fp16"):
        build(str(file), tmp_path / "bundle", stages=HALF, precision="fp16")
    assert not (tmp_path / "bundle").exists()


def test_the_command_builds_inspects_and_verifies(checkpoint: Get, tmp_path: Path) -> None:
    out, runner = str(tmp_path / "bundle"), CliRunner()
    source = str(checkpoint("dev-like"))
    done = runner.invoke(main, ["build", source, "--out", out, "--stages", "clip,conditioner"])
    assert done.exit_code == 0, done.output
    assert "conditioner: fp32" in done.stderr
    assert done.stdout.startswith(f"{out}: 2 stages")
    shown = runner.invoke(main, ["inspect", out])
    assert "modulation f32" in shown.stdout
    told = json.loads(runner.invoke(main, ["inspect", out, "--json"]).stdout)
    assert set(told["stages"]) == {"clip", "conditioner"}
    checked = runner.invoke(main, ["verify", out, "--json"])
    assert checked.exit_code == 0
    rows = json.loads(checked.stdout)["rows"]
    assert [row["output"] for row in rows] == ["pooled", "modulation", "context"]
    assert all(row["passed"] for row in rows)


def test_verify_exits_1_on_another_checkpoint(checkpoint: Get, tmp_path: Path) -> None:
    out, runner = str(tmp_path / "bundle"), CliRunner()
    build(str(checkpoint("dev-like")), Path(out), stages=["clip"])
    done = runner.invoke(main, ["verify", out, "--checkpoint", str(checkpoint("schnell-like"))])
    assert done.exit_code == 1
    assert "Error: clip pooled is off by" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["build", "./nowhere", "--out", "x"], 1, "Error: no checkpoint at ./nowhere; give"),
        (
            ["build", str(NANO), "--out", "x", "--variant", "fill"],
            1,
            "Error: these tensors are not FLUX.1 fill",
        ),
        (["build", str(NANO), "--out", "x", "--stages", "unet"], 2, "'unet' is not one of clip, t5"),
        (
            ["build", str(NANO), "--out", "x", "--stage-precision", "t5=fp16"],
            1,
            "Error: T5 overflows in fp16",
        ),
        (["build", str(NANO), "--out", "x", "--stage-precision", "t5"], 2, "such as t5=bf16"),
        (["build", str(NANO)], 2, "Missing option '-o' / '--out'"),
        (["inspect", "./nowhere"], 1, "Error: nothing is at ./nowhere; give a bundle, checkpoint or LoRA"),
        (["verify", "./nowhere"], 1, "Error: no bundle.json in nowhere"),
    ],
)
def test_bad_input_is_one_line(
    args: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, args)
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom flux_trt.exporter.cli import main\n"
        "assert CliRunner().invoke(main, ['build', '--help']).exit_code == 0\n"
        "print(sorted({'torch', 'onnx', 'transformers', 'diffusers'} & set(sys.modules)))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"
