"""How latents move from noise to picture: schedule, noise, trajectory, the loop and its moves.

The tasks say where a trajectory starts; the loop here walks it on any backend. Nothing here knows a task, a
prompt or a file. A new sampler is a move, a new schedule a kind in `schedule`; what differs between models is
a rule of the bundle, of which `positions`, `noise` and `schedule` each read one.
"""
