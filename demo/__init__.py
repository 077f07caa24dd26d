"""A demo of everything: replayed engines, synthetic GPUs and traffic, the exporter, and what reads it."""
