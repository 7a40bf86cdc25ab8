"""Rows of the tables of numbers: (what, measured, target) of each results file.

Only `table.py` imports them. A function takes one file's JSON and yields its rows, so that no figure in a
page is typed by hand; a new results file is a function here and a line in the list of `table.py`.
"""
