"""Graphs become TensorRT engines: shapes, what is refused beforehand, and one child process for each.

`engine` is the whole way, `builder` what runs in the child, `profile` the ranges of shapes, `preflight` the
limits. Works on bundles alone: neither the checkpoint nor PyTorch is needed, so that engines can be built
where they will run. Imported by the roof. A new flavour of TensorRT is an entry in `runtime/bundle/flavour`.
"""
