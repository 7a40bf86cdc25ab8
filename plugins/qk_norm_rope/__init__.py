"""`flux::QKNormRope`: the norms of queries and keys per head, and their rotation by position, in one pass.

The README beside has the contract. `oracle` says what is right, `contract` names inputs and attributes,
`kernel` is the Triton source that `compile` turns into the binaries that `binary` picks from, `launch`
starts one, and `plugin` gives it to TensorRT. Nothing is imported here, so who needs one of them loads no
other.
"""
