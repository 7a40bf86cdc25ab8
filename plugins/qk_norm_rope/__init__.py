"""`flux::QKNormRope`: the norms of queries and keys per head, and their rotation by position, in one pass.

Nothing is imported here; see the README beside for the contract.
"""
