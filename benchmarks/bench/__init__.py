"""flux-bench: latency, memory and quality of a bundle beside other ways to run the same checkpoint."""
