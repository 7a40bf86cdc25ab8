"""flux-bench: latency, memory and quality of a bundle beside other ways to run the same checkpoint.

Start with `cli`, then `run` (turns of all painters), `worker` (one painter, in a process of its own) and
`schema` (every file that is written). It is installed as `flux_trt.bench`, stands on the runtime alone and
never imports the exporter or the tests; the scripts beside it may import it. A new figure is a field of
`schema`; a new way to paint is a module of `peers`.
"""
