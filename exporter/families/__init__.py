"""What each family of models is: how its tensors are named, its modules, its stages, its numbers, its oracle.

A family is a folder here with a class that follows `model.Model`, and one line in `recognise`; families do
not import each other. What they share lies beside them: `stage` (one graph to be), `layers`, `rope`, `text`,
`tower` and `encoder` (language models), `vae` and their oracles. Everything above works with `Model` and
`Stage` and tests for no family's name.
"""
