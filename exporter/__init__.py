"""A FLUX checkpoint becomes a bundle: checkpoint -> stage -> trace -> weights -> bundle.

Read in this order: `build` (the whole way, one call per step), `checkpoint`, `variant`, `flux` (the
transformer), `stages`, `trace`, `rewrite`, folder `fp8`, `weights`, folder `engines`, `verify`, `cli`.
"""
