"""The operators FLUX needs beyond ONNX: their contracts, oracles and host-side tables.

Any room may stand on this one, and it imports nothing of ours: an operator can be checked and compiled
without the rest. A new operator is a folder with a README of its own: its contract, an oracle of a few
lines of NumPy, its kernel, and the plugin that TensorRT finds by name.
"""
