"""FLUX.1: dev, schnell, Krea, Kontext, Fill, Canny and Depth.

`params` reads the shape off a config or off the tensors, `names` makes recipes of two namings, `model` has
the modules that are traced, `stages` their contracts, `variants` what differs between the members,
`reference` the oracle; `flux1` is all of it as one `Model`. Only `recognise` imports this folder.
"""
