"""Graphs become TensorRT engines: shapes, what is refused beforehand, and one child process for each."""
