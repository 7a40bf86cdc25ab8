"""flux-serve on many GPUs: replicas of the engine, deployed with Ray Serve, behind one door.

`front` is the door: it answers what it knows, and hands the rest to `fleet`, which starts the replicas, calls
them, watches and drains them. `painter` is what runs in each: the application of `serving/app.py` with its
engine, called without a socket. `crossing` is what passes between the two. Only this room and
`runtime/cluster.py` import Ray, and only `serving/cli.py` imports this room, when it is asked for `--ray`.
"""
