"""`flux-serve`: OpenAI's images API for FLUX bundles."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flux_trt.runtime.cli import faults
from flux_trt.runtime.errors import RequestError
from flux_trt.runtime.options import ENGINES, version_options
from flux_trt.serving.local import is_local

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fastapi import FastAPI

    from flux_trt.serving.limits import Limits
    from flux_trt.serving.models import Model, Models

# numpy, FastAPI and the backends are imported when it is run: --help answers at once.

SHORTEST_KEY = 16  # characters


class Command(click.Command):
    """Expected faults are one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        with faults({"": "serve"}):
            return super().invoke(ctx)


@click.command(
    cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@version_options("flux-serve")
@click.argument(
    "bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False)
)
@click.option(
    "--alias",
    "aliases",
    metavar="NAME=BUNDLE",
    multiple=True,
    help="Another name for a bundle, such as gpt-image-2=dev; a bundle's own is its folder's.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="One that others can reach needs a key.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one."
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with a key on each line, of which clients send one; see the permissions of the file.",
)
@click.option(
    "--max-queue-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    help="Of painting that may wait; more is refused with 429 and the time to come again.",
)
@click.option(
    "--max-rows",
    type=click.IntRange(min=1),
    help="Of the denoiser in one run.  [default: by size, or by --rows]",
)
@click.option(
    "--rows",
    "table",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What flux-bench rows has measured on this machine: how many rows pay at which size.",
)
@click.option(
    "--max-megapixels",
    type=click.FloatRange(min=0, min_open=True),
    default=4.2,
    show_default=True,
    help="Of a picture that is painted; those that are sent may have 16.",
)
@click.option("--max-steps", type=click.IntRange(min=1), default=200, show_default=True)
@click.option(
    "--max-pictures", type=click.IntRange(1, 100), default=10, show_default=True, help="Of one request."
)
@click.option(
    "--lora-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="LoRA files that clients may choose by their names, for bundles built with --lora-rank.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder for jobs, which outlive their connection and the server; without it none are taken.",
)
@click.option(
    "--keep-hours",
    type=click.FloatRange(min=0, min_open=True),
    default=24.0,
    show_default=True,
    help="How long a job and its pictures are kept.",
)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="After SIGTERM, how long what was accepted may take.",
)
@click.option(
    "--ray",
    is_flag=True,
    help="Serve with Ray, an engine in each replica, in the cluster of RAY_ADDRESS, else on this machine.",
)
@click.option(
    "--replicas",
    type=click.IntRange(min=1),
    help="For --ray.  [default: one for each GPU; on CPUs one]",
)
@click.option(
    "--autoscale", metavar="MIN:MAX", help="For --ray: as many replicas as the requests want, within these."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--backend",
    type=click.Choice(["auto", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]),
    default="auto",
    show_default=True,
)
@click.option(
    "--memory",
    type=click.Choice(["resident", "streaming"]),
    default="resident",
    show_default=True,
    help="All stages loaded, or weights streamed through the GPU (TensorRT).",
)
@click.option("--tile", type=click.IntRange(min=0), help="As flux-run's.")
@click.option(
    "--engines",
    type=click.Path(path_type=Path, file_okay=False),
    envvar=ENGINES,
    show_envvar=True,
    help="As flux-run's.",
)
@click.option("--threads", type=click.IntRange(min=1), help="As flux-run's.")
@click.option("--no-check", is_flag=True, help="Skip the SHA-256 of the bundles' files.")
def main(
    bundles: tuple[Path, ...],
    aliases: tuple[str, ...],
    host: str,
    port: int,
    api_key_file: Path | None,
    max_queue_seconds: float,
    max_rows: int | None,
    table: Path | None,
    max_megapixels: float,
    max_steps: int,
    max_pictures: int,
    lora_dir: Path | None,
    keep: Path | None,
    keep_hours: float,
    drain_seconds: float,
    ray: bool,
    replicas: int | None,
    autoscale: str | None,
    **machine: Any,
) -> None:
    """Serve BUNDLEs by OpenAI's images API, and a page at /."""
    keys = _keys(api_key_file)
    if not keys and not is_local(host):
        raise RequestError(
            f"--host {host} can be reached from other machines, and there is no key; give --api-key-file, "
            "or stay at 127.0.0.1"
        )
    named = _named(bundles)
    known = _aliases(aliases, named)
    limits = _limits(
        table,
        queue_seconds=max_queue_seconds,
        rows=max_rows,
        megapixels=max_megapixels,
        steps=max_steps,
        pictures=max_pictures,
    )
    size = _size(ray, replicas, autoscale, keep)
    from flux_trt.serving import told
    from flux_trt.serving.server import serve

    if ray:
        _with_ray(size, named, known, limits, keys, machine, lora_dir, (host, port, drain_seconds))
        return
    with told.listening():
        app = _application(named, known, limits, machine, lora_dir, keys, keep, keep_hours)
        served = app.state.served
        try:
            if served.jobs:
                served.jobs.resume()
            serve(app, served.engine, host, port, drain_seconds)
        finally:
            for model in served.models:
                model.close()


def _application(
    named: Mapping[str, Path],
    aliases: Mapping[str, str],
    limits: Limits,
    machine: Mapping[str, Any],
    lora_dir: Path | None = None,
    keys: Sequence[str] | None = None,
    keep: Path | None = None,
    hours: float = 24.0,
) -> FastAPI:
    """What one engine serves; with Ray it is made in each replica, behind a gate that stands elsewhere."""
    from flux_trt.serving.app import application

    return application(_loaded(named, aliases, machine, lora_dir), limits, keys, keep, hours)


def _with_ray(
    size: tuple[int, int] | None,
    named: Mapping[str, Path],
    aliases: Mapping[str, str],
    limits: Limits,
    keys: Sequence[str],
    machine: dict[str, Any],
    lora_dir: Path | None,
    place: tuple[str, int, float],
) -> None:
    from flux_trt.runtime.bundle.bundle import Bundle
    from flux_trt.runtime.cluster import joined

    for path in named.values():
        Bundle.open(path, check=False)  # each replica compares the sums
    with joined("ray.serve") as cluster:
        from flux_trt.serving.app import Gate
        from flux_trt.serving.ray.fleet import Fleet, Size
        from flux_trt.serving.ray.front import Front
        from flux_trt.serving.server import serve

        least, most = size or (cluster.actors(machine["device"]),) * 2
        share = cluster.share(machine["device"], machine["threads"], most)
        places = {name: path.resolve() for name, path in named.items()}
        engines = machine["engines"] and machine["engines"].resolve()
        options = machine | {"threads": share.threads, "engines": engines}
        make = partial(_application, places, aliases, limits, options, lora_dir and lora_dir.resolve())
        fleet = Fleet(f"flux-serve-{place[1]}", make, Size(least, most), share, cluster)
        try:
            serve(Gate(Front(fleet), keys, limits.body_bytes), fleet, *place)
        finally:
            fleet.close()


def _size(
    ray: bool, replicas: int | None, autoscale: str | None, keep: Path | None
) -> tuple[int, int] | None:
    """The least and the most replicas; None: as many as the cluster has room for."""
    given = {"--replicas": replicas, "--autoscale": autoscale}
    if not ray:
        if wrong := [name for name, value in given.items() if value is not None]:
            raise RequestError(f"{wrong[0]} is for --ray; give --ray, or leave it out")
        return None
    if keep is not None:
        raise RequestError(
            "--keep does not go with --ray: a job belongs to the engine that has begun it, and each replica "
            "has its own; leave it out, or paint jobs with flux-run generate --jobs FILE --ray"
        )
    if autoscale is None:
        return None if replicas is None else (replicas, replicas)
    if replicas is not None:
        raise RequestError("--replicas and --autoscale both say how many there are; give one of them")
    least, _, most = autoscale.partition(":")
    if not (least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most)):
        raise RequestError(f"--autoscale {autoscale:.40} is not MIN:MAX with 1 <= MIN <= MAX, such as 1:8")
    return int(least), int(most)


def _loaded(
    named: Mapping[str, Path],
    aliases: Mapping[str, str],
    machine: Mapping[str, Any],
    lora_dir: Path | None,
) -> Models:
    from flux_trt.runtime.pipeline import Pipeline
    from flux_trt.runtime.stepwise import Stepwise
    from flux_trt.serving.models import Model, Models

    check = not machine["no_check"]
    options = {name: machine[name] for name in ("backend", "device", "memory", "tile", "engines", "threads")}
    found: dict[str, Model] = {}
    try:
        for name, path in named.items():
            pipeline = Pipeline.load(path, check=check, **options)
            created = int((path / "bundle.json").stat().st_mtime)
            found[name] = Model(name, Stepwise(pipeline), created)
            click.echo(f"{name}: {path} on {pipeline.backend.device}, {pipeline.backend.name}", err=True)
        if lora_dir is not None:
            found = _adapted(found, lora_dir)
    except BaseException:
        for model in found.values():
            model.close()
        raise
    return Models(found, aliases)


def _adapted(models: Mapping[str, Model], folder: Path) -> dict[str, Model]:
    """Models with the LoRAs of a folder, which are told."""
    from flux_trt.serving import told
    from flux_trt.serving.adapters import opened

    notes: list[str] = []
    with told.heard(notes):
        taken, rest = opened(folder, {name: each.pipeline.bundle for name, each in models.items()})
    for note in notes:
        click.echo(note, err=True)
    for name, adapters in taken.items():
        for each in adapters:
            click.echo(f"{name}:{each.id}: {each.file.path}", err=True)
    for other in rest:
        click.echo(f"{other} in {folder} is no .safetensors file; it is not served", err=True)
    return {name: replace(each, adapters=taken[name]) for name, each in models.items()}


def _limits(table: Path | None, **numbers: Any) -> Limits:
    from flux_trt.serving.limits import Limits
    from flux_trt.serving.rows import read

    return Limits(**numbers) if table is None else Limits(table=read(table), **numbers)


def _named(bundles: Iterable[Path]) -> dict[str, Path]:
    """Bundles by the names of their folders."""
    found: dict[str, Path] = {}
    for path in bundles:
        name = path.resolve().name
        if name in found:
            raise RequestError(f"{found[name]} and {path} have the same name; rename one of them")
        found[name] = path
    return found


def _aliases(given: Iterable[str], named: Mapping[str, Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in given:
        alias, sign, name = each.partition("=")
        if not (alias and sign and name):
            raise RequestError(f"--alias {each} is not NAME=BUNDLE, such as gpt-image-2=dev")
        if name not in named:
            raise RequestError(f"--alias {each}: there is no bundle {name}; name one of {', '.join(named)}")
        if alias in named or alias in found:
            raise RequestError(f"--alias {each}: {alias} is taken; choose another name")
        found[alias] = name
    return found


def _keys(path: Path | None) -> list[str]:
    """The keys of a file; blank lines and those that begin with # are none."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise RequestError(f"cannot read the keys {path}: {fault}; check the file") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise RequestError(f"{path} has no key; write one on a line")
    if short := [key for key in keys if len(key) < SHORTEST_KEY or not key.isascii() or " " in key]:
        raise RequestError(
            f"key {keys.index(short[0]) + 1} of {path} is not {SHORTEST_KEY} or more ASCII letters without "
            'spaces; make one with python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return keys


if __name__ == "__main__":
    main()
