"""Kernel facilities of sockets. This package knows no service; the reactor imports nothing else of svcd."""
