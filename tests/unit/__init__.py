"""Unit tests: no reactor runs and nothing waits for the clock."""
