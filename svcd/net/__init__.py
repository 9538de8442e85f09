"""Kernel facilities of sockets. Knows no service; the reactor may import it."""
