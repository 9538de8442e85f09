"""Chaos test: faults in many services of a running daemon, with reloads and upgrades, while two services are watched.

    python -m tests.chaos --seconds 120

It needs namespaces (unshare(1)), so that it shares no network, name server or process with the machine.
"""
