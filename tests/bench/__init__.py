"""Benchmarks: svcd and comparable servers in one run on one machine, as ratios. Run `python -m tests.bench`."""
