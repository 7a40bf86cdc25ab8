"""The product's engine builder, with TensorRT-RTX, which builds without a GPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from flux_trt.exporter.build import build
from flux_trt.exporter.cli import main
from flux_trt.exporter.engines import child, engine
from flux_trt.exporter.engines.engine import Options, build_engines, keep_engines
from flux_trt.exporter.engines.profile import Shapes
from flux_trt.exporter.families.flux1.variants import PARTS as STAGES
from flux_trt.exporter.folder import digest, lock_of
from flux_trt.exporter.lock import alone
from flux_trt.exporter.quantise.e4m3 import Fp8
from flux_trt.exporter.quantise.ranges import calibrate_checkpoint
from flux_trt.runtime.bundle import manifest
from flux_trt.runtime.bundle.engine import Engine, engines, find, graph_digest
from flux_trt.runtime.cli import main as flux_run
from flux_trt.runtime.errors import BackendError, BuildError, BundleError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is only there on x86-64 Linux"
)
ADA = Options(capabilities=("8.9",))


@pytest.fixture(scope="module")
def nano(bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of flux-nano that engines may be put into."""
    return shutil.copytree(bundle("flux-nano", "fp16"), tmp_path_factory.mktemp("engines") / "nano")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_stage_builds_for_two_targets(
    bundle: Callable[..., Path], precision: str, tmp_path: Path
) -> None:
    root = shutil.copytree(bundle("flux-nano", precision), tmp_path / "bundle")
    said: list[str] = []
    seen: set[str] = set()
    shapes = Shapes(((64, 64), (96, 64)), max_batch=2, max_references=1)
    options = Options(capabilities=("12.0", "8.9"))
    folders = build_engines(
        root, options, shapes, tell=said.append, progress=lambda what, done, total: seen.add(what)
    )
    found = dict(engines(root))
    everything = [*STAGES, *manifest.read(root).glue]
    assert [found[folder].recipe.stage for folder in folders] == everything
    for folder, built in found.items():
        assert digest(folder / "engine.plan") == built.plan
        assert built.recipe.capabilities == ["8.9", "12.0"]
    stage = manifest.read(root).stages["denoiser"]
    weights = sum((root / path).stat().st_size for path in stage.weights)
    assert found[folders[3]].plan.bytes > 0.9 * weights, "an engine holds its weights"
    assert "denoiser: Building engine" in seen
    assert len(said) == len(everything)

    again: list[str] = []
    started = time.perf_counter()
    assert build_engines(root, options, shapes, tell=again.append) == folders
    assert all("is there already" in line for line in again)
    assert time.perf_counter() - started < 30, "nothing was built again"


def test_fp8_stages_build_for_two_targets(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    source = str(checkpoint("flux-nano"))
    (tmp_path / "prompts.txt").write_text("a red circle in the center on a white background\n")
    calibrate_checkpoint(
        source, tmp_path / "ranges.json", prompts=tmp_path / "prompts.txt", size=(64, 64), steps=2
    )
    root, stages = tmp_path / "bundle", ["t5", "denoiser"]
    build(
        source,
        root,
        precision="fp8",
        fp8=Fp8(calibration=tmp_path / "ranges.json"),
        stages=stages,
        link=False,
    )
    build_engines(root, Options(capabilities=("8.9", "12.0")), stages=stages)
    found = [built.recipe for _, built in engines(root) if built.recipe.stage in stages]
    assert [(recipe.stage, recipe.precision) for recipe in found] == [("denoiser", "fp8"), ("t5", "fp8")]
    with pytest.raises(BuildError, match="fp8 needs sm 8.9 or newer, not 8.6"):
        build_engines(root, Options(capabilities=("8.6",)), stages=stages)


def test_an_engine_that_was_tampered_with_is_built_again(nano: Path) -> None:
    folder, *_ = build_engines(nano, ADA, stages=["clip"])
    plan = folder / "engine.plan"
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    said: list[str] = []
    build_engines(nano, ADA, stages=["clip"], tell=said.append)
    assert "is built again" in said[0]
    assert dict(engines(nano))[folder].plan == digest(plan)


def test_the_command_builds_for_one_size_and_one_row(nano: Path) -> None:
    command = ["engines", nano, "--stages", "clip", "--sm", "8.9", "--no-wide", "--no-pairs"]
    done = CliRunner().invoke(main, [*map(str, command), "--backend", "tensorrt-rtx"])
    assert done.exit_code == 0, done.output
    mixing = [built.recipe.profiles for _, built in engines(nano) if built.recipe.stage == "mix"]
    assert [(1, 1, 1)] in [[profile["batch"] for profile in profiles] for profiles in mixing]


def test_an_engine_of_another_version_has_another_folder(nano: Path) -> None:
    folder, *_ = build_engines(nano, ADA, stages=["clip"])
    recipe = dict(engines(nano))[folder].recipe
    assert recipe.model_copy(update={"version": "0.0.0"}).folder != recipe.folder
    stale = nano / recipe.model_copy(update={"version": "0.0.0"}).folder
    shutil.copytree(folder, stale)
    with pytest.raises(BundleError, match="not in the folder of its key"):
        engines(nano)
    shutil.rmtree(stale)


def test_engines_follow_a_bundle_that_is_built_again(nano: Path, tmp_path: Path) -> None:
    folder, *_ = build_engines(nano, ADA, stages=["clip"])
    found = manifest.read(nano)
    same = {name: graph_digest(found, name) for name in found.stages}
    keep_engines(nano, tmp_path / "same", same)
    assert folder.name in [path.name for path, _ in engines(tmp_path / "same")]
    keep_engines(nano, tmp_path / "other", {"clip": "0" * 64})
    assert engines(tmp_path / "other") == []


def test_a_dying_builder_leaves_its_last_words_and_no_engine(
    nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(engines(nano))
    monkeypatch.setattr(child, "MODULE", "engine_child_that_dies")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    with pytest.raises(BuildError, match=r"t5: the builder was killed by signal 6; .*last words: .*the end"):
        build_engines(nano, ADA, stages=["t5"])
    assert dict(engines(nano)) == before
    assert not list((nano / "engines").glob(".partial*"))


def test_a_graph_that_tensorrt_cannot_read(nano: Path, tmp_path: Path) -> None:
    from flux_trt.exporter.engines.builder import Job
    from flux_trt.runtime.bundle.flavour import FLAVOURS

    folder, *_ = build_engines(nano, ADA, stages=["clip"])
    graph = tmp_path / "clip.onnx"
    graph.write_bytes(b"not a graph")
    job = Job(graph=graph, inputs=[], recipe=dict(engines(nano))[folder].recipe, plan=None)
    with pytest.raises(BuildError, match="clip: "):
        child.run(job, FLAVOURS["tensorrt-rtx"])


def test_what_tensorrt_itself_says_is_told(tiny: Path, tmp_path: Path) -> None:
    """The decoder of the tiny bundle casts to bytes, which no TensorRT takes."""
    root = shutil.copytree(tiny, tmp_path / "bundle")
    words = ["engines", str(root), "--stages", "vae_decoder", "--backend", "tensorrt-rtx", "--sm", "8.9"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    (line,) = done.output.splitlines()
    assert line.startswith("Error: vae_decoder: Could not parse ONNX correctly; TensorRT's last words: ")
    assert "In node 4" in line
    assert "TensorRT does not support UINT8 types for intermediate tensors" in line
    assert "Begin node" not in line
    assert line.endswith("; report it, or build without this stage")
    assert list((root / "engines").iterdir()) == []


def test_a_child_without_memory_says_so(tiny: Path, tmp_path: Path) -> None:
    """At a real limit: TensorRT's own words in one line, and no engine."""
    root = shutil.copytree(tiny, tmp_path / "bundle")
    command = [sys.executable, "-m", "flux_trt.exporter.cli", "engines", str(root), "--stages", "t5"]
    command += ["--backend", "tensorrt-rtx", "--sm", "8.9"]
    script = f"ulimit -v 500000; exec {shlex.join(command)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: t5: ")
    assert "TensorRT's last words: [E] " in line
    assert "bad_alloc" in line
    assert "; free memory, or use --precision " in line
    assert list((root / "engines").iterdir()) == []


@pytest.fixture
def read_only(tiny: Path, tmp_path: Path) -> Iterator[Path]:
    """A bundle on a mount that nobody writes to; permissions would not stop root."""
    place, mounted = tmp_path / "mounted", False
    shutil.copytree(tiny, tmp_path / "real" / "bundle")
    place.mkdir()
    for command in (["--bind", str(tmp_path / "real")], ["-o", "remount,bind,ro"]):
        try:
            done = subprocess.run(["mount", *command, str(place)], capture_output=True, check=False)
        except OSError:
            pytest.skip("there is no mount here")
        if done.returncode and not mounted:
            pytest.skip("this system lets nobody mount")
        mounted = True
    yield place / "bundle"
    subprocess.run(["umount", str(place)], check=True)


def test_a_bundle_that_is_read_only(read_only: Path, tmp_path: Path) -> None:
    """It paints, is inspected, and takes engines elsewhere; what would write into it says how else."""
    before = digest(read_only / "bundle.json")
    build_it = ["engines", str(read_only), "--stages", "clip", "--backend", "tensorrt-rtx", "--sm", "8.9"]
    done = CliRunner().invoke(main, build_it)
    assert done.exit_code == 1
    assert done.output.count("\n") == 1
    assert done.output.startswith("Error: cannot write ")
    assert "(Read-only file system)" in done.output
    assert "--engines DIR" in done.output
    far = tmp_path / "far"
    done = CliRunner().invoke(main, [*build_it, "--engines", str(far)])
    assert done.exit_code == 0, done.output
    assert {built.recipe.stage for _, built in engines(read_only, far)} >= {"clip"}
    done = CliRunner().invoke(main, ["inspect", str(read_only)])
    assert done.exit_code == 0, done.output
    picture = tmp_path / "a.png"
    words = ["generate", str(read_only), "a red circle", "--backend", "onnxruntime", "--device", "cpu"]
    done = CliRunner().invoke(flux_run, [*words, "--out", str(picture)])
    assert done.exit_code == 0, done.output
    assert picture.is_file()
    done = CliRunner().invoke(flux_run, [*words, "--out", str(read_only / "a.png")])
    assert done.exit_code == 1
    assert done.output == f"Error: the folder {read_only} cannot be written; choose another\n"
    done = CliRunner().invoke(main, ["build", "examples/flux-nano", "--out", str(read_only)])
    assert done.exit_code == 1
    _, line = done.output.splitlines()  # after what the checkpoint is; before any work
    assert line.startswith("Error: cannot write ")
    assert "(Read-only file system); choose another place" in line
    assert digest(read_only / "bundle.json") == before


def test_one_build_at_a_time(nano: Path) -> None:
    with (
        alone(lock_of(nano), nano),
        pytest.raises(BuildError, match="another build is at work"),
    ):
        build_engines(nano, ADA, stages=["clip"])


def test_killing_a_build_at_any_moment_leaves_no_half_engine(nano: Path, tmp_path: Path) -> None:
    root = shutil.copytree(nano, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    command = [sys.executable, "-m", "flux_trt.exporter.cli", "engines", str(root), "--stages", "clip"]
    command += ["--backend", "tensorrt-rtx", "--sm"]
    chance, whole = random.Random(7), 0
    started = time.monotonic()
    subprocess.run([*command, "8.9"], check=True, capture_output=True)
    longest = time.monotonic() - started
    for index in range(20):
        shutil.rmtree(root / "engines")
        running = subprocess.Popen([*command, "8.9"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.2, 1.1) * longest)
        if index % 2:
            running.kill()  # the builder must follow its parent
        else:
            subprocess.run(["pkill", "-KILL", "-P", str(running.pid)], check=False)
        running.wait()
        (root / "engines").mkdir(exist_ok=True)
        found = engines(root)
        whole += len(found)
        assert all(digest(folder / "engine.plan") == built.plan for folder, built in found)
    assert build_engines(root, ADA, stages=["clip"])
    assert not list((root / "engines").glob(".partial*")), "what killed builds left is cleared away"


def test_the_builder_does_not_outlive_its_parent(nano: Path) -> None:
    reading, writing = os.pipe()
    alive = subprocess.Popen(
        [sys.executable, "-m", "flux_trt.exporter.engines.builder", str(writing)],
        stdin=subprocess.PIPE,
        pass_fds=[writing],
        text=True,
    )
    os.close(writing)
    assert alive.stdin is not None
    alive.stdin.close()
    assert alive.wait(timeout=60) != 0
    os.close(reading)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sm", "8.6", "--precision", "fp8"], "fp8 needs sm 8.9 or newer, not 8.6"),
        (["--sm", "9.0"], "tensorrt-rtx builds no engines for sm 9.0"),
        ([], "no GPU to build tensorrt-rtx engines for; say which with --sm"),
        (["--sm", "8.9", "--rope", "plugin"], "built where there is a GPU; use --rope native"),
    ],
)
def test_refused_before_any_work(arguments: list[str], message: str, tmp_path: Path) -> None:
    if engine.present_capabilities():
        pytest.skip("what is refused here needs the machine to have no GPU")
    out = tmp_path / "bundle"
    command = ["build", "no-such-checkpoint", "--out", str(out), "--backend", "tensorrt-rtx", *arguments]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert message in result.output
    assert not out.exists()


def test_tensorrt_that_is_not_installed(nano: Path) -> None:
    if any(each.name == "tensorrt" for each in importlib.metadata.distributions()):
        pytest.skip("tensorrt is installed")
    with pytest.raises(BackendError, match="tensorrt is not installed"):
        build_engines(nano, Options(flavour="tensorrt", capabilities=("8.9",)))


def test_a_wrong_record(nano: Path) -> None:
    folder, *_ = build_engines(nano, ADA, stages=["clip"])
    record = folder / "engine.json"
    text = record.read_text()
    record.write_text(text.replace("8.9", "8.6"))
    with pytest.raises(BundleError, match="not in the folder of its key"):
        engines(nano)
    record.write_text("{")
    with pytest.raises(BundleError, match="cannot read"):
        engines(nano)
    record.write_text(text)
    assert Engine.model_validate_json(text).recipe.stage == "clip"


def test_an_engine_that_is_cut_short_is_refused(nano: Path, tmp_path: Path) -> None:
    """TensorRT swallows what its writer says: the limit must be told, and nothing be left."""
    place = tmp_path / "engines"
    command = ["ulimit -f 300; exec", sys.executable, "-m", "flux_trt.exporter.cli", "engines", str(nano)]
    command += ["--stages", "denoiser", "--backend", "tensorrt-rtx", "--sm", "8.9", "--sm", "8.9"]
    command += ["--engines", str(place)]
    done = subprocess.run(["bash", "-c", " ".join(command)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "engine.plan (File too large); raise the limit of file sizes" in done.stderr
    assert list(place.glob("denoiser*")) == []
    assert list(place.glob(".*")) == []


def test_engines_may_lie_elsewhere(nano: Path, tmp_path: Path) -> None:
    twice = Options(capabilities=("8.9", "8.9"))
    folder, *_ = build_engines(nano, twice, stages=["clip"], into=tmp_path / "far")
    assert folder.parent == tmp_path / "far"
    found, version = manifest.read(nano), dict(engines(nano, tmp_path / "far"))[folder].recipe.version
    assert dict(engines(nano, tmp_path / "far"))[folder].recipe.capabilities == ["8.9"]
    where, _ = find(found, nano, "clip", "tensorrt-rtx", version, "8.9", elsewhere=tmp_path / "far")
    assert where.name == folder.name
    with pytest.raises(BackendError, match=r"build it with flux-export engines '.*a b' --backend") as caught:
        find(found, tmp_path / "a b", "t5", "tensorrt-rtx", version, "8.9", elsewhere=tmp_path / "far")
    assert f"--engines {tmp_path / 'far'}" in str(caught.value)
    with pytest.raises(BackendError, match=r"has none for sm 9\.0 at all; use --backend tensorrt"):
        find(found, nano, "t5", "tensorrt-rtx", version, "9.0")


def test_an_engine_of_an_older_builder_is_superseded(nano: Path, tmp_path: Path) -> None:
    folder, *_ = build_engines(nano, ADA, stages=["clip"], into=tmp_path / "far")
    built = Engine.model_validate_json((folder / "engine.json").read_text())
    older = built.model_copy(update={"recipe": built.recipe.model_copy(update={"builder": "older"})})
    folder.rename(tmp_path / "far" / older.recipe.name)
    (tmp_path / "far" / older.recipe.name / "engine.json").write_text(older.dumps())
    said: list[str] = []
    build_engines(nano, ADA, stages=["clip"], tell=said.append, into=tmp_path / "far")
    assert any(f"{older.recipe.name} removed" in line for line in said)
    assert [path for path, each in engines(nano, tmp_path / "far") if each.recipe == older.recipe] == []


def test_plans_that_are_built_twice(nano: Path, tmp_path: Path) -> None:
    """TensorRT-RTX gives the same bytes; whether TensorRT does is up to it."""
    plans = [build_engines(nano, ADA, stages=["clip"], into=tmp_path / name)[0] for name in "ab"]
    assert digest(plans[0] / "engine.plan") == digest(plans[1] / "engine.plan")
