"""A small FLUX.1 trained from nothing, and a checker that judges its pictures.

Read the files in the order of the data: `scene` and `edit` (what can be asked for), `picture` (drawing it),
`checker` (judging it), `vocabulary`, `bundle` (the parts and their folder), `phase` (a phase of training),
`text`, `vae`, `latents`, `dit`, `distill` (what learns), `train` (the one command), `score` and `plot`;
`beside` and `variants` make a Fill and a Canny of it.
`scene`, `edit`, `picture` and `checker` need NumPy and Pillow only.
"""
