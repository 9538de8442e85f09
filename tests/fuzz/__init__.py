"""Mutated input for parsers, in memory."""
