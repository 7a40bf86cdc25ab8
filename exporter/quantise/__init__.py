"""FP8: what is kept in it, how large the values are that enter each layer, and the graph with both."""
