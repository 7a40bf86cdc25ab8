"""What can be asked for, and what each task makes of it: a request becomes a trajectory of latents.

`arguments` and `request` are what the roof fills in; `compose` turns a request into the trajectory that
`sampling` walks; every task that differs from plain text-to-image has one small module of its own: that is
what a new task adds. `guidance` and `references` follow the bundle's rules. Imported by the roof alone.
"""
