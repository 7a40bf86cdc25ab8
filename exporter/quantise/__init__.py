"""Quantisation: what is kept in FP8, how large the values are that enter each layer, and the graph with both.

`e4m3` has the numbers, `calibrate` runs the model in torch and watches, `ranges` gives the stages what was
found, `quantize` writes it into a traced graph, `rounded` does the same to a torch module. What of a stage
may be quantised is said by the stage. A new format is a file beside `e4m3`. Imported by `graphs`, `verify`
and the roof.
"""
