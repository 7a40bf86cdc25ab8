"""Build TensorRT-RTX engines of fp8 stages for sm 8.9 and say what TensorRT made: a JSON line per stage.

Run as a child process: a fault in the builder ends the process. The compiled layers and the types of their
inputs are told by the builder's own report, since an engine cannot be opened without a GPU.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import build_engines
import tensorrt_rtx as trt

from flux_trt.runtime.bundle import manifest


class Report(trt.ILogger):
    """Keeps the lines that tell of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        self.products += [line for line in message.splitlines() if "LayerType: gemm" in line]


class Builder(trt.Builder):
    def create_builder_config(self) -> trt.IBuilderConfig:
        config = super().create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        return config


def main(root: Path) -> None:
    build_engines.trt.Builder = Builder
    for name, stage in manifest.read(root).stages.items():
        report = Report()
        row = build_engines.build(root / stage.graph, stage, report)
        inputs = [re.search(r"Inputs: (.*?)\], (?:Constants|Outputs)", line) for line in report.products]
        kinds = [re.findall(r"Datatype: (\w+)", found[1])[0] for found in inputs if found]
        print(json.dumps({"stage": name, "products": kinds, **row}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
