"""Counters of services and connections, their snapshots, and their registry."""
