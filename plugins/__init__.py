"""The operators FLUX needs beyond ONNX: their contracts, oracles and host-side tables."""
