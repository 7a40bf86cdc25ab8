"""LoRA files of every origin: read into one form, and merged into a part's tensors.

`keys` splits a tensor's name into the module it changes and its role in that; `forms` finds whose name a
module has; `scale` knows how strong an update is; `file` does all of it for one file and gives `term`s:
what is done to which parameter, under the family's own names. `arithmetic` says what each kind of term makes
of a weight, and `merge` a part whose tensors are changed so when they are read. Which modules there are is
handed in by a family. A new form is a line in `forms`, a new kind a branch in `arithmetic`.
"""
