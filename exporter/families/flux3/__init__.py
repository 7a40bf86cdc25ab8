"""FLUX.3 Image Klein: base, and distilled to a flow map.

`params` reads the shape off a config or off the tensors, `names` makes recipes of two namings, `model` has
the modules that are traced, `stages` their contracts, `variants` what differs between the members, `modules`
what LoRAs may change, `reference` the oracle; `flux3` is all of it as one `Model`. Only `recognise` imports
this folder.
"""
