"""A bundle on disk: the manifest that it is described by, its files, its engines, its tokenizers.

Everything may import this room; the exporter writes what it reads. All that lies in a bundle is untrusted:
paths stay inside, sizes and hashes are compared, nothing is unpickled. A new field of `bundle.json` goes into
`manifest`, with a new schema number when older tools must not read it.
"""
