"""Graph to graph: what torch writes becomes what runtimes read well.

Rules, in order: inline functions; fold what is constant (TensorRT refuses the sequence ops that unfolded
splits leave), except transposes of weights, which would put copies of them into the graph; add the functions
that stay, as TensorRT may have a plugin of their name; merge equal nodes; drop what is unused; drop the
tracer's notes, which name files of the building machine.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from flux_trt.exporter.graphs.rope_function import functions

LARGE = 1024


def rewrite(model: ir.Model) -> None:
    """Apply the rules to `model` in place; it computes the same function before and after."""
    optimizer.inline(model)
    optimizer.fold_constants(
        model, input_size_limit=LARGE, output_size_limit=8 * LARGE, should_fold=_should_fold
    )
    model.functions.update({function.identifier(): function for function in functions(model)})
    ir.passes.Sequential(
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
        common.NameFixPass(),
    )(model)


def inline(model: ir.Model) -> None:
    """Put the bodies of the model's functions in the place of their calls, in place; nothing else changes."""
    ir.passes.Sequential(
        common.InlinePass(), common.RemoveUnusedFunctionsPass(), common.RemoveUnusedOpsetsPass()
    )(model)


def _should_fold(node: ir.Node) -> bool | None:
    return False if node.op_type == "Transpose" else None
