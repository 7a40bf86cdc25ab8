"""A FLUX checkpoint becomes a bundle: checkpoint -> stages -> graphs -> weights -> bundle -> engines.

The roof is what a person calls: `cli`, `build` (the whole way, one call a step), `prepare` (all that is
known before any work), `survey` (a dry run), `describe` (the manifest), `reuse`, `inspect`, and the room
`verify`. Under it lie the rooms, each of which imports only what stands below it:

    engines       graphs to TensorRT engines
    graphs        stages to ONNX graphs and their weights
    quantise      what FP8 needs to know of a stage, and the graph with it
    families      what each family of models is
    checkpoints   one reader a layout

and at the ground `folder` (files that appear whole or not at all) and `faults`.
"""
