"""Counters of services and connections, frozen snapshots of them, and their registry."""
