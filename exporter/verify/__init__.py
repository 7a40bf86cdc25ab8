"""Is a bundle right? Every stage beside the public implementation, on the same weights and inputs.

`verify` runs the stages on onnxruntime, or on `eager`, which runs the traced modules in torch where no
backend has kernels. The oracles themselves belong to the families. Imported by the command line alone (and
by benchmarks).
"""
