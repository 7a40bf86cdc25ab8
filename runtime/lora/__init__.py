"""LoRA files of every origin, read without a framework into one form, and made into what graphs take.

`stored` reads safetensors files; `keys` splits a tensor's name into the module it changes and its role in
that; `forms` finds whose name a module has; `scale` knows how strong an update is; `file` does all of it for
one file and gives `term`s: what is done to which parameter, under the family's own names; `fit` asks whether
they fit a model. A new form is a line in the exporter's `checkpoints/lora/prefixes.py`; a new kind is a line
in `file` and `fit`, and a branch in the exporter's `arithmetic`. The exporter reads LoRAs with these files,
too; they know no model by name: which modules there are is handed in, by a family or by a bundle.
"""
