"""Parsers and formatters of protocols, from bytes to values and back, without I/O, clock and Twisted."""
