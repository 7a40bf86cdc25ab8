"""Calibration against diffusers: the same prompts and seeds, its own modules watched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diffusers import FluxPipeline

from flux_trt.exporter.cli import main
from flux_trt.exporter.quantise import calibration
from flux_trt.exporter.quantise.calibration import Calibration
from flux_trt.exporter.quantise.ranges import calibrate_checkpoint
from flux_trt.runtime.errors import BuildError, RequestError

Get = Callable[..., Path]
PROMPTS = ["a red circle", "a small blue square at the left on a white background", "", "two cats"]
ASKED = {"size": (64, 32), "steps": 3, "guidance": 2.0}
SAME = {
    "double_blocks.0.img_attn.qkv": "transformer_blocks.0.attn.to_k",
    "double_blocks.0.img_attn.proj": "transformer_blocks.0.attn.to_out.0",
    "double_blocks.0.txt_attn.qkv": "transformer_blocks.0.attn.add_v_proj",
    "double_blocks.0.txt_mlp.0": "transformer_blocks.0.ff_context.net.0.proj",
    "double_blocks.0.img_mlp.2": "transformer_blocks.0.ff.net.2",
    "single_blocks.0.linear1": "single_transformer_blocks.0.proj_mlp",
    "single_blocks.1.linear2": "single_transformer_blocks.1.proj_out",
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n\n".join(text for text in PROMPTS if text) + "\n")
    return path


@pytest.fixture(scope="module")
def found(
    checkpoint: Get, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Calibration]:
    out = tmp_path_factory.mktemp("calibration") / "calibration.json"
    return out, calibrate_checkpoint(str(checkpoint("dev-like")), out, prompts=prompts, **ASKED)


@pytest.fixture(scope="module")
def watched(checkpoint: Get) -> dict[str, float]:
    """The largest input of diffusers' layers while its pipeline paints, T5's among them."""
    pipe = FluxPipeline.from_pretrained(checkpoint("dev-like"), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    largest: dict[str, float] = {}

    def watch(prefix: str, module: torch.nn.Module) -> None:
        for name, layer in module.named_modules():
            if isinstance(layer, torch.nn.Linear):

                def hook(_: object, args: tuple[torch.Tensor], key: str = prefix + name) -> None:
                    largest[key] = max(largest.get(key, 0.0), float(args[0].abs().max()))

                layer.register_forward_pre_hook(hook)

    watch("", pipe.transformer)
    watch("t5/", pipe.text_encoder_2)
    texts = [text for text in PROMPTS if text]
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(texts))]
    pipe(
        texts,
        width=64,
        height=32,
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=generators,
        max_sequence_length=32,
        output_type="latent",
    )
    return largest


def test_the_largest_values_are_diffusers_own(
    found: tuple[Path, Calibration], watched: dict[str, float]
) -> None:
    _, seen = found
    for ours, theirs in SAME.items():
        assert seen.layers["denoiser"][ours].amax == pytest.approx(watched[theirs], rel=1e-4), ours
    for name, size in seen.layers["t5"].items():
        assert size.amax == pytest.approx(watched[f"t5/{name}"], rel=1e-5), name
    modulation = "double_blocks.0.img_mod.lin"
    assert seen.layers["conditioner"][modulation].amax == pytest.approx(
        watched["transformer_blocks.0.norm1.linear"], rel=1e-5
    )


def test_what_is_recorded(found: tuple[Path, Calibration]) -> None:
    path, seen = found
    assert path.read_text() == seen.dumps()
    assert calibration.read(path) == seen
    assert not path.with_name("calibration.json.state").exists()
    assert seen.settings.prompts == [text for text in PROMPTS if text]
    assert (seen.settings.width, seen.settings.height, seen.settings.steps) == (64, 32, 3)
    denoiser = seen.layers["denoiser"]
    assert set(denoiser) == {
        *(
            f"double_blocks.0.{s}_{k}"
            for s in ("img", "txt")
            for k in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")
        ),
        *(f"single_blocks.{i}.linear{n}" for i in (0, 1) for n in (1, 2)),
        *(
            f"{b}.attention.{h}"
            for b in ("double_blocks.0", "single_blocks.0", "single_blocks.1")
            for h in "qkv"
        ),
    }
    for size in denoiser.values():
        assert 0 < size.p99_9 <= size.p99_99 <= size.p99_999 <= size.amax
    tokens, width, steps = 8, 96, 3  # 64x32 pixels; D of dev-like; every prompt at every step
    assert denoiser["double_blocks.0.img_attn.qkv"].count == 3 * steps * tokens * width


class Killed(BaseException):
    pass


def stopping_at(blocks: int) -> Callable[[str, int, int], None]:
    """A listener that ends the run when so many blocks have begun."""
    begun = iter(range(blocks))

    def listen(what: str, done: int, total: int) -> None:
        if what == "calibrate denoiser" and next(begun, None) is None:
            raise Killed

    return listen


def test_a_stopped_calibration_goes_on_where_it_was(
    checkpoint: Get, prompts: Path, found: tuple[Path, Calibration], tmp_path: Path
) -> None:
    out, lines = tmp_path / "calibration.json", []
    source = str(checkpoint("dev-like"))
    for stop_at in (5, 3):  # blocks that begin: in the second step, then, gone on, in the third
        with pytest.raises(Killed):
            calibrate_checkpoint(
                source, out, prompts=prompts, progress=stopping_at(stop_at), tell=lines.append, **ASKED
            )
        assert not out.exists()
    heard: list[tuple[str, int, int]] = []
    again = calibrate_checkpoint(
        source, out, prompts=prompts, progress=lambda *told: heard.append(told), tell=lines.append, **ASKED
    )
    small = [line for line in lines if line.startswith("warning: the calibration is small: 3 prompts")]
    assert len(small) == 3, "of each run"
    goes_on = [line for line in lines if line not in small]
    assert goes_on == [f"calibration goes on after step {step} of 3" for step in (1, 2)]
    assert again.layers == found[1].layers
    assert not any(what == "calibrate t5" for what, _, _ in heard)
    done = [(done, total) for what, done, total in heard if what == "calibrate denoiser"]
    assert done[0][0] == pytest.approx(done[0][1] * 2 / 3, rel=0.01)
    assert done[-1][0] == done[-1][1]
    assert list(tmp_path.iterdir()) == [out]


def test_the_state_of_other_work_is_not_taken(checkpoint: Get, prompts: Path, tmp_path: Path) -> None:
    out, lines, source = tmp_path / "c.json", [], str(checkpoint("dev-like"))
    with pytest.raises(Killed):
        calibrate_checkpoint(source, out, prompts=prompts, progress=stopping_at(4), **ASKED)
    assert (tmp_path / "c.json.state").exists()
    other = {**ASKED, "steps": 1}
    found = calibrate_checkpoint(source, out, prompts=prompts, tell=lines.append, **other)
    assert ([line for line in lines if "goes on" in line], found.settings.steps) == ([], 1)
    (tmp_path / "d.json.state").write_bytes(b"not a state")
    calibrate_checkpoint(source, tmp_path / "d.json", prompts=prompts, **other)


def test_the_defaults_and_the_built_in_prompts(checkpoint: Get, tmp_path: Path) -> None:
    from flux_trt.exporter.checkpoints.open import open_checkpoint
    from flux_trt.exporter.families.recognise import recognise
    from flux_trt.exporter.quantise.calibrate import settings_of

    found = settings_of(recognise(open_checkpoint(str(checkpoint("schnell-like")))))
    assert (found.width, found.height, found.steps, found.guidance) == (64, 64, 4, None)
    assert len(found.prompts) >= 24
    assert all(text.strip() == text and text for text in found.prompts)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "fill-like",
            [],
            "FLUX.1 fill paints from a picture; give pictures to flux-export calibrate with --jobs",
        ),
        ("schnell-like", ["--guidance", "3"], "FLUX.1 schnell has no guidance; leave --guidance out"),
        (
            "dev-like",
            ["--prompts", "nowhere.txt"],
            "cannot read nowhere.txt (No such file or directory); give",
        ),
        ("dev-like", ["--prompts", "empty.txt"], "empty.txt has no prompts; give a text file"),
        ("dev-like", ["--size", "65x64"], "size 65x64 is not possible"),
        ("dev-like", ["--variant", "fill"], "these tensors are not FLUX.1 fill; --variant can be dev"),
    ],
)
def test_bad_input_is_one_line(
    checkpoint: Get, name: str, options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    done = CliRunner().invoke(main, ["calibrate", str(checkpoint(name)), "--out", "c.json", *options])
    assert done.exit_code == 1, done.output
    assert f"Error: {said}" in done.stderr
    assert "Traceback" not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_the_command(checkpoint: Get, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "c.json"
    command = ["calibrate", str(checkpoint("schnell-like")), "-o", str(out), "--prompts", str(prompts)]
    done = CliRunner().invoke(main, [*command, "--size", "32x32", "--steps", "1"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{out}: ")
    assert json.loads(out.read_text())["settings"]["guidance"] is None


def test_a_file_that_is_no_calibration(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(BuildError, match="cannot read .*c.json .No such file or directory.; make it with"):
        calibration.read(path)
    for text in ("{", "[]", '{"schema_version": 1}'):
        path.write_text(text)
        with pytest.raises(BuildError, match="is not a calibration .*; make it with flux-export calibrate"):
            calibration.read(path)


def test_a_size_must_be_one_of_the_model_s(checkpoint: Get, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the nearest is 64x16"):
        calibrate_checkpoint(str(checkpoint("dev-like")), tmp_path / "c.json", size=(64, 17))
