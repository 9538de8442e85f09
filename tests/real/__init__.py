"""The daemon as people run it: a process of its own, real sockets, real clients."""
