"""Benchmarks: svcd side by side with its peers, in one run, on one machine, as ratios. `python -m tests.bench`."""
