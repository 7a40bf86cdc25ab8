"""A server in a thread of this process, as `flux-serve` runs it, for as long as a test lasts."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import uvicorn
from PIL import Image

from flux_trt.runtime import Pipeline
from flux_trt.runtime.stepwise import Stepwise
from flux_trt.serving import told
from flux_trt.serving.adapters import opened
from flux_trt.serving.app import application
from flux_trt.serving.engine import Engine
from flux_trt.serving.limits import Limits
from flux_trt.serving.models import Model, Models
from flux_trt.serving.server import Server

Load = Callable[[Path, str, str], Pipeline]


@dataclass
class Running:
    """Where it is, and what it is made of."""

    url: str
    engine: Engine
    pipelines: Mapping[str, Pipeline]
    key: str = "none"
    clients: list[openai.OpenAI] = field(default_factory=list)
    """Closed at the end: one that the collector finds open is a warning, in whatever test runs then."""

    def client(self, **options: Any) -> openai.OpenAI:
        made = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=options.pop("key", self.key), **{"max_retries": 0, **options}
        )
        self.clients.append(made)
        return made

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=60, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **options)


@contextmanager
def running(
    bundles: Mapping[str, Path],
    *,
    limits: Limits | None = None,
    keys: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
    backend: str = "onnxruntime",
    lora_dir: Path | None = None,
    load: Load = Pipeline.load,
    **more: Any,
) -> Iterator[Running]:
    """Serve bundles by these names at a port of its own, until the block ends."""
    with told.listening():
        pipelines = {name: load(path, backend, "cpu") for name, path in bundles.items()}
        made = {name: Model(name, Stepwise(each), 1) for name, each in pipelines.items()}
        if lora_dir is not None:
            taken, _ = opened(lora_dir, {name: each.bundle for name, each in pipelines.items()})
            made = {name: replace(each, adapters=taken[name]) for name, each in made.items()}
        yield from _running(pipelines, Models(made, aliases), limits, keys, **more)


def _running(
    pipelines: Mapping[str, Pipeline],
    models: Models,
    limits: Limits | None,
    keys: Sequence[str],
    **more: Any,
) -> Iterator[Running]:
    app = application(models, limits, keys, **more)
    engine = app.state.served.engine
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="off")
    server = Server(config, engine, 30)
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    engine.start()
    if app.state.served.jobs:
        app.state.served.jobs.resume()
    thread.start()
    clients: list[openai.OpenAI] = []
    try:
        wait(lambda: server.started and engine.state[0] != "loading")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}", engine, pipelines, *keys[:1], clients=clients)
    finally:
        for each in clients:
            each.close()
        engine.drain(0)
        server.should_exit = True
        thread.join(20)
        for pipeline in pipelines.values():
            pipeline.close()


@contextmanager
def process(code: str, words: Sequence[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A server's own process, once it is ready, with its `url`.

    Args:
        code: of Python.
        words: that it is called with, beside a free port and the CPU.
        log: gets all that it says.
    """
    command = [sys.executable, "-c", code, *words]
    command += ["--port", "0", "--backend", "onnxruntime", "--device", "cpu"]
    with (
        log.open("w+") as said,
        subprocess.Popen(
            command, stderr=said, stdout=said, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        ) as made,
    ):
        try:
            wait(lambda: "http://" in log.read_text())
            made.url = re.search(r"http://\S+", log.read_text()).group()  # type: ignore[attr-defined, union-attr]
            wait(lambda: httpx.get(made.url + "/readyz").status_code == 200)  # type: ignore[attr-defined]
            yield made
        finally:
            made.kill()


def wait(until: Any, seconds: float = 60) -> None:
    """Until something is so."""
    start = time.monotonic()
    while not until():
        assert time.monotonic() - start < seconds, "it did not happen"
        time.sleep(0.005)


def pixels(text: str) -> np.ndarray:
    """Of a picture in base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def file(image: Image.Image, kind: str = "PNG") -> bytes:
    """A picture's bytes."""
    made = io.BytesIO()
    image.save(made, kind)
    return made.getvalue()
