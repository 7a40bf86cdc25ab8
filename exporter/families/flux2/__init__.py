"""FLUX.2: klein 4B and 9B (distilled, base, KV) and dev.

`params` reads the shape off a config or off the tensors, `names` makes recipes of two namings, `model` has
the modules that are traced, `stages` their contracts, `variants` what differs between the members,
`reference` the oracle; `flux2` is all of it as one `Model`. Only `recognise` imports this folder.
"""
