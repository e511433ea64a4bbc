"""Benchmarks: each figure with its number of samples, both arms of a ratio in alternating blocks of one run."""
