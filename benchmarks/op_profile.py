"""Where a denoiser's step spends its time, by type of operator, as the libraries' own profilers tell."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from walk import Task

from flux_trt.runtime.backends.openvino import OpenVino
from flux_trt.runtime.bundle.bundle import Bundle

RUNS, KEPT = 5, 8


def inputs(root: Path, task: Task, rng: np.random.Generator) -> dict[str, Any]:
    """Random inputs of the bundle's denoiser at the task's size."""
    known = {"batch": 1, "tokens": task.size.side**2, "text": task.size.text, "sequence": task.size.tokens}
    stage = Bundle.open(root, check=False).manifest.stages["denoiser"]
    return {
        each.name: rng.standard_normal([known.get(str(dim), dim) for dim in each.dims], dtype=np.float32)
        for each in stage.inputs
    }


def onnxruntime_ops(root: Path, task: Task, rng: np.random.Generator) -> dict[str, float]:
    """Milliseconds per run."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(root / "denoiser.onnx", options, ["CPUExecutionProvider"])
        for _ in range(RUNS + 1):
            session.run(None, inputs(root, task, rng))
        events = json.loads(Path(session.end_profiling()).read_text())
    runs: list[Counter[str]] = [Counter()]
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            runs[-1][event["args"]["op_name"]] += event["dur"]
        elif event["name"] == "model_run":
            runs.append(Counter())
    return _largest(sum(runs[1:-1], Counter()), len(runs) - 2, 1e3)


def openvino_ops(root: Path, task: Task, rng: np.random.Generator) -> dict[str, float]:
    """Milliseconds per run."""
    stage = Bundle.open(root, check=False).manifest.stages["denoiser"]
    compiled = OpenVino(settings={"PERF_COUNT": True}).compile(root / stage.graph, "denoiser", stage)
    request, total = compiled.create_infer_request(), Counter[str]()
    for run in range(RUNS + 1):
        request.infer(inputs(root, task, rng))
        for each in request.profiling_info if run else ():
            total[each.node_type] += each.real_time.total_seconds()
    return _largest(total, RUNS, 1e-3)


def _largest(total: Counter[str], runs: int, unit: float) -> dict[str, float]:
    """Per run, in milliseconds: the largest types, the rest, and all."""
    times = {name: value / unit / runs for name, value in total.most_common()}
    names = list(times)[:KEPT]
    found = {name: times[name] for name in names}
    found["the rest"] = sum(times.values()) - sum(found.values())
    found["all"] = sum(times.values())
    return {name: round(value, 3) for name, value in found.items()}
