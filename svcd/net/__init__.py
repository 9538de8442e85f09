"""Kernel facilities of sockets. The package depends on no service; the reactor imports nothing else of svcd."""
