"""Rows of the README's table: (what, measured, target) of each results file."""
