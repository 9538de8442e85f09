"""Faults of every kind in a running daemon, with reloads and upgrades, while two healthy services are watched.

    python -m tests.chaos --seconds 120

It needs namespaces of its own (unshare(1)), so that the network, the name server and the processes are nobody else's.
"""
