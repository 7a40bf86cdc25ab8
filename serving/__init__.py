"""Pictures over HTTP: OpenAI's images API, painted by the runtime with step-level batching.

`cli` is what a person calls. `app` puts together what it starts: `engine`, the one thread that owns a
device's pipelines and walks all pictures step by step, those that `choice` names next; and the routes of
`images`, `jobs`, `health` and `page`. `adapters` are the LoRAs that clients may name. What a client sends
goes through `fields` (names and types), `uploads` (pictures, read safely) and `asked` (which task that is);
what it gets is made by `answer` and `stream`, and by `errors`, whose faults have OpenAI's shape. It imports
the runtime alone: never torch, never the exporter. A new parameter is a field in `fields` and a row in
docs/serve.md; a new route is a module beside `images` that `app` includes.
"""
