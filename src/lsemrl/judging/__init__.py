"""Two outputs for one source, and which of them is better."""
