"""Checkpoints on disk: one reader a layout, and what every reader needs.

A reader finds where every tensor lies and which config goes with it; no tensor is read here, and files are
untrusted. `open` chooses the reader by what is inside. Imported by all of the exporter; imports nothing of
it. A new layout is one file here and one line in `open`.
"""
