"""A bundle on disk: its manifest, its files, its engines, and the windows that its encoders read through.

Everything may import this room; the exporter writes what it reads. All that lies in a bundle is untrusted:
paths stay inside, sizes and hashes are compared, nothing is unpickled. What differs between models is a field
of `rules`, all else of `bundle.json` is in `manifest`; `flow` tells from it which stages a picture needs. A
change that older tools must not read gets a new schema number, and what it replaces a file like `schema1`.
"""
