"""Stages become ONNX graphs: traced without weights, rewritten, given their weights as external data.

`trace` and `rewrite` make the graph, `rope_function` is the operator that stays a function in it, `weights`
writes the safetensors file that its initializers point into, `glue` makes the small graphs of the loop's own
arithmetic. Nothing here knows a family: a stage brings all that is needed. Imported by the roof.
"""
