"""LoRAs merged into a part's tensors; `runtime/lora` reads their files.

`prefixes` has what files put before the modules' names. `arithmetic` says what each kind of term makes of a
weight, and `merge` a part whose tensors are changed so when they are read. Which modules there are is handed
in by a family. A new form is a line in `prefixes`, a new kind a branch in `arithmetic`.
"""
