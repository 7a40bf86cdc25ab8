"""Quantised tensors, by format: recognised by their names, and read as the numbers that they stand for.

A format is one file here with a function that finds what it knows among a part's tensors and gives the part's
tensors with their values decoded: codes and scales become one `Decoded` each. What is quantised in a format
that is not decoded is refused by that format's name. Only `checkpoints` imports this room.
"""
