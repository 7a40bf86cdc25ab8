"""What runs graphs: the protocols, one module a library, and the device memory they work in.

A backend implements the three protocols of `protocols` and is named in `connect`; the libraries are imported
only when one is connected. Nothing here knows prompts, pictures or tasks. Everything above may import
`protocols`, `connect`, `loaded` and `memory`; the modules of single libraries are this room's own.
"""
