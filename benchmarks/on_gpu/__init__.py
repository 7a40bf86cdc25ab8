"""`make gpu`: what is checked and timed on a GPU, each part a child process with a limit of its own.

`parts` says what there is to do, `child` runs one, `machine` looks at the card, `told` makes the summary.
Only `benchmarks/gpu.py` imports them. They need nothing but Python's own library, since they run before
anything is installed. A new check is a test in `tests/gpu/` and a line in `parts`; a new timing is a script
that writes a results file, and a line there.
"""
